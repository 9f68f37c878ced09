// The page: one token is current, some tiles are chosen, `paint` shows which keys they accepted.
// Only what changed since the last paint is touched, so that long texts stay fluid.
const $ = (id) => document.getElementById(id);
const text = $("text"), grid = $("grid"), list = $("list"), strip = $("strip");

const state = {
  token: -1, // -1: none yet, the panel is about the whole text
  pinned: false,
  shown: data.tiles, // those that pass the filters
  picked: new Set(), // of those, the ones clicked on; none means all
  preview: null, // the tile under the pointer
  byTiles: false, // colour is the number of tiles
};

const chosenTiles = () =>
  state.picked.size ? state.shown.filter((tile) => state.picked.has(tile.index)) : state.shown;

// ---- colours: the level of a key is its place in the palette ----

const dark = matchMedia("(prefers-color-scheme: dark)");
let palette, inks, theme;

function readColours() {
  const hex = data.palettes[dark.matches ? "dark" : "light"];
  palette = Array.from({ length: 256 }, (_, i) => "#" + hex.slice(6 * i, 6 * i + 6));
  inks = palette.map((colour) => {
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16) / 255);
    return 0.2126 * r ** 2.2 + 0.7152 * g ** 2.2 + 0.0722 * b ** 2.2 > 0.19 ? "#111" : "#fff";
  });
  const style = getComputedStyle(document.documentElement);
  theme = {};
  for (const name of ["paper", "outside", "weaker", "faint", "query"]) {
    theme[name] = style.getPropertyValue(`--${name}`).trim();
  }
}

function canvasOf(canvas) {
  const ratio = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return { context, width, height };
}

function drawLegend() {
  const { context, width, height } = canvasOf(document.querySelector("#scale canvas"));
  for (let i = 1; i < 256; i++) {
    context.fillStyle = palette[i];
    context.fillRect(((i - 1) / 255) * width, 0, width / 255 + 1, height);
  }
  const most = Math.max(chosenTiles().length, 1);
  const ticks = state.byTiles
    ? [...new Set([1, Math.ceil(most / 2), most])].map((n) => [n / most, `${n}`])
    : [0.01, 0.1, 0.25, 0.5, 1].map((value) => [Math.sqrt(value), `${value}`]);
  $("ticks").replaceChildren(...ticks.map(([at, name]) => {
    const tick = document.createElement("span");
    tick.textContent = name;
    tick.style.left = `${100 * at}%`;
    return tick;
  }));
  $("scale").title = state.byTiles ? "tiles that accept the key" : "relevance of accepted keys";
}

// ---- the text ----

const spans = data.tokens.map((token, i) => {
  const span = document.createElement("span");
  span.id = `t${i}`;
  span.dataset.token = i;
  span.textContent = token === "" ? label(i) : shown(token);
  if (token === "") span.className = "unnamed";
  if (token.includes("\n")) span.className = "newline";
  return span;
});
text.append(...spans);
text.setAttribute("aria-label", `Text of ${count(data.length)} tokens`);

const wanted = new Uint8Array(data.length); // level of each key at this paint
const tilesOf = new Uint16Array(data.length); // how many tiles accept it
const drawn = new Uint8Array(data.length); // what the text shows
let lit = [], query = -1;
const bands = { in: [0, 0], weaker: [0, 0] }; // runs of tokens that have this class

// Fills `wanted` and returns the keys accepted by some of the tiles.
function accept(tiles, token) {
  const keys = [];
  for (const tile of tiles) {
    data.visit(tile, token, (key, level) => {
      if (wanted[key] === 0) keys.push(key);
      if (level > wanted[key]) wanted[key] = level;
      tilesOf[key]++;
    });
  }
  if (state.byTiles) {
    for (const key of keys) wanted[key] = Math.ceil((255 * tilesOf[key]) / tiles.length);
  }
  for (const key of keys) tilesOf[key] = 0;
  return keys;
}

function paintText(tiles) {
  const token = state.token;
  const keys = token < 0 ? [] : accept(tiles, token);
  for (const key of lit) if (wanted[key] === 0) paintKey(key, 0);
  for (const key of keys) if (wanted[key] !== drawn[key]) paintKey(key, wanted[key]);
  lit = keys;

  paintBand("in", tiles);
  paintBand("weaker", token < 0 ? [] : tiles.filter((tile) => data.isCut(tile, token)));
  if (query !== token) {
    if (query >= 0) spans[query].classList.remove("query");
    if (token >= 0) spans[token].classList.add("query");
    query = token;
  }
  text.classList.toggle("reading", token >= 0);
  text.classList.toggle("pinned", state.pinned);
  if (token >= 0) text.setAttribute("aria-activedescendant", `t${token}`);
  drawStrip(keys);
  for (const key of keys) wanted[key] = 0;
}

// The keys in the widest window of these tiles.
function paintBand(name, tiles) {
  let [from, to] = [0, 0];
  if (state.token >= 0) {
    to = state.token + 1;
    from = to - Math.max(0, ...tiles.map((tile) => data.inWindow(tile, state.token)));
  }
  const [first, end] = bands[name];
  for (let i = first; i < end; i++) if (i < from || i >= to) spans[i].classList.remove(name);
  for (let i = from; i < to; i++) if (i < first || i >= end) spans[i].classList.add(name);
  bands[name] = [from, to];
}

function paintKey(key, level) {
  const { style, dataset } = spans[key];
  drawn[key] = level;
  style.background = level ? palette[level] : "";
  style.color = level ? inks[level] : "";
  if (level) dataset.level = level;
  else delete dataset.level;
}

let stripSurface;

// The whole text from left to right: the same row of a relevance map, all of it in sight.
function drawStrip(keys) {
  const { context, width, height } = stripSurface;
  const step = width / data.length, bar = Math.max(step, 2);
  context.fillStyle = state.token < 0 ? theme.paper : theme.outside;
  context.fillRect(0, 0, width, height);
  for (const [name, colour] of [["in", theme.paper], ["weaker", theme.weaker]]) {
    const [from, to] = bands[name];
    context.fillStyle = colour;
    context.fillRect(from * step, 0, (to - from) * step, height);
  }
  for (const key of keys) {
    const tall = Math.max(3, ((height - 6) * wanted[key]) / 255);
    context.fillStyle = palette[wanted[key]];
    context.fillRect(key * step, height - tall, bar, tall);
  }
  if (state.token >= 0) {
    context.fillStyle = theme.query;
    context.fillRect(state.token * step, 0, 2, height);
  }
}

// ---- the grid: every tile's row of the map, by distance on a logarithmic scale ----

const cells = data.tiles.map((tile) => {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.tile = tile.index;
  button.setAttribute("aria-pressed", "false");
  const canvas = document.createElement("canvas"), number = document.createElement("span");
  button.append(canvas, number);
  return { tile, button, canvas, number, surface: null };
});

function buildGrid() {
  const axis = (words, row) => {
    const span = document.createElement("span");
    span.className = row ? "axis row" : "axis";
    span.textContent = words;
    return span;
  };
  grid.style.gridTemplateColumns = `max-content repeat(${data.heads}, minmax(26px, 1fr))`;
  grid.append(axis(""), ...Array.from({ length: data.heads }, (_, head) => axis(`head ${head}`)));
  for (let layer = 0; layer < data.layers; layer++) {
    const row = cells.slice(layer * data.heads, (layer + 1) * data.heads);
    grid.append(axis(`layer ${layer}`, true), ...row.map((cell) => cell.button));
  }
}

const farthest = Math.log2(1 + data.length);

function drawCell({ tile, surface }) {
  const { context, width, height } = surface;
  const token = state.token, bar = 2;
  const x = (distance) => (width - bar) * (1 - Math.log2(1 + distance) / farthest);
  const keys = token < 0 ? Math.min(tile.window, data.length) : data.inWindow(tile, token);
  context.fillStyle = theme.outside;
  context.fillRect(0, 0, width, height);
  context.fillStyle = token >= 0 && data.isCut(tile, token) ? theme.weaker : theme.paper;
  const left = keys ? x(keys - 1) : width;
  context.fillRect(left, 0, width - left, height);
  if (token >= 0) {
    data.visit(tile, token, (key, level, distance) => {
      const tall = Math.max(3, (height * level) / 255);
      context.fillStyle = palette[level];
      context.fillRect(x(distance), height - tall, bar, tall);
    });
    return;
  }
  const counts = (tile.histogram ??= data.histogram(tile));
  const most = Math.max(...counts, 1), step = width / farthest;
  context.fillStyle = theme.faint;
  counts.forEach((n, i) => {
    const tall = ((height - 2) * n) / most;
    context.fillRect(width - (i + 1) * step, height - tall, step - 1, tall);
  });
}

function paintGrid() {
  for (const cell of cells) {
    const { tile, button, number } = cell, token = state.token;
    drawCell(cell);
    const kept = token < 0 ? tile.kept : data.accepted(tile, token);
    const pairs = token < 0 ? tile.pairs : data.inWindow(tile, token);
    const words = token < 0 ? percent(kept / Math.max(pairs, 1)) : count(kept);
    if (number.textContent !== words) number.textContent = words;
    button.classList.toggle("silent", kept === 0);
    button.dataset.accepted = kept;
    const said = kept ? `${count(kept)} of ${count(pairs)} accepted` : "nothing accepted";
    const shape = `window ${windowText(tile.window)}, width ${tile.width.toFixed(3)}`;
    button.title = `${tileName(tile)}: ${said}; ${shape}`;
    button.setAttribute("aria-label", button.title);
  }
}

// ---- the panel's words ----

function element(tag, className, words = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = words;
  return made;
}

function paintWords(tiles) {
  const token = state.token, heading = $("token");
  if (token < 0) {
    heading.textContent = "The whole text";
    $("sentence").textContent =
      "Of the keys in its window, the share each tile accepts; and how far back the strongest " +
      "are, the nearest on the right.";
    return;
  }
  heading.replaceChildren(element("code", "", label(token)), ` token ${count(token)}`);
  if (state.pinned) heading.append(element("span", "badge", "pinned"));
  let kept = 0, pairs = 0;
  for (const tile of tiles) {
    kept += data.accepted(tile, token);
    pairs += data.inWindow(tile, token);
  }
  const speaking = tiles.filter((tile) => data.accepted(tile, token) > 0).length;
  const one = tiles.length === 1;
  const windows = `${count(pairs)} keys in ${one ? "its window" : "their windows"}`;
  const who = one ? tileName(tiles[0]) : `any of ${tiles.length} tiles`;
  $("sentence").textContent =
    tiles.length === 0 ? "No tile passes the filters."
    : pairs === 0 ? "Padding: it reads nothing."
    : kept === 0 ? `Nothing accepted by ${who}: all ${windows} got exactly 0.`
    : `${speaking} of ${tiles.length} tiles accepted ${count(kept)} of the ${windows}. ` +
      `The rest, ${percentRejected(kept, pairs)}, got exactly 0.`;
}

function paintList(tiles) {
  const token = state.token;
  if (token < 0) return list.replaceChildren();
  const rows = tiles
    .filter((tile) => data.accepted(tile, token) > 0)
    .sort((a, b) => data.total(b, token) - data.total(a, token))
    .map((tile) => tileRow(tile, token));
  const silent = tiles.filter((tile) => data.accepted(tile, token) === 0);
  if (silent.length) rows.push(silentRow(silent));
  list.replaceChildren(...rows);
}

function tileRow(tile, token) {
  const row = element("li", "");
  row.dataset.tile = tile.index;
  const facts = element("div", "facts"), keys = element("div", "keys");
  const kept = data.accepted(tile, token);
  facts.append(
    element("b", "", tileName(tile)),
    element("span", "", `window ${windowText(tile.window)}`),
    element("span", "", `width ${tile.width.toFixed(2)}`),
    element("span", "", `${count(kept)} of ${count(data.inWindow(tile, token))} accepted`),
    element("span", "", `sum ${data.total(tile, token).toFixed(2)}`),
  );
  data.visit(tile, token, (key, level, distance) => {
    const chip = element("span", ""), word = element("b", "", label(key));
    word.style.background = palette[level];
    word.style.color = inks[level];
    chip.dataset.key = key;
    chip.title = `token ${count(key)}, ${count(distance)} back`;
    chip.append(word, relevanceText(relevanceOf(level)));
    keys.append(chip);
  });
  if (kept > data.most) {
    keys.append(element("i", "weaker", `and ${count(kept - data.most)} weaker`));
  }
  row.append(facts, keys);
  return row;
}

function silentRow(silent) {
  const row = element("li", "silent");
  row.dataset.silent = silent.map((tile) => tile.index).join(" ");
  row.append(element("b", "", "Nothing accepted: "), silent.map(tileName).join("; "));
  return row;
}

let listDue;

function paint() {
  const tiles = chosenTiles();
  paintText(state.preview ? [state.preview] : tiles);
  paintGrid();
  paintWords(tiles);
  // The list is long to build: the colours are on the screen first.
  clearTimeout(listDue);
  listDue = setTimeout(() => {
    listDue = 0;
    paintList(tiles);
  });
}
