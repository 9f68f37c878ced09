// What pointers, keys and filters do to the state.

let due = false;

// At most one paint per frame, however fast the pointer moves.
function repaint() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    paint();
  });
}

function moveTo(token, announce = false) {
  if (token === state.token) return;
  state.token = token;
  repaint();
  if (announce) say();
}

function setPinned(pinned) {
  state.pinned = pinned;
  repaint();
  say();
}

// Only on keys and clicks: a pointer passing over the text is not worth reading aloud.
function say() {
  requestAnimationFrame(() => {
    $("status").textContent = `${$("token").textContent}. ${$("sentence").textContent}`;
  });
}

const tokenAt = (event) => {
  const span = event.target.closest?.("[data-token]");
  return span ? Number(span.dataset.token) : -1;
};

text.addEventListener("pointerover", (event) => {
  const token = tokenAt(event);
  if (token >= 0 && !state.pinned && event.pointerType !== "touch") moveTo(token);
});

text.addEventListener("click", (event) => {
  const token = tokenAt(event);
  if (token < 0 || !getSelection().isCollapsed) return; // text is being selected
  const again = state.pinned && token === state.token;
  moveTo(token);
  setPinned(!again);
});

// The nearest token of the line above or below.
function lineFrom(token, step) {
  const { offsetTop: top, offsetLeft: left } = spans[token];
  let best = token, nearest = Infinity, line = null;
  for (let i = token + step; i >= 0 && i < data.length; i += step) {
    const { offsetTop, offsetLeft } = spans[i];
    if (offsetTop === top) continue;
    line ??= offsetTop;
    if (offsetTop !== line) break;
    const apart = Math.abs(offsetLeft - left);
    if (apart <= nearest) [best, nearest] = [i, apart];
  }
  return best;
}

text.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const token = state.token, last = data.length - 1;
  const moves = {
    ArrowLeft: () => Math.max(token - 1, 0),
    ArrowRight: () => Math.min(token + 1, last),
    ArrowUp: () => (token < 0 ? 0 : lineFrom(token, -1)),
    ArrowDown: () => (token < 0 ? 0 : lineFrom(token, 1)),
    Home: () => 0,
    End: () => last,
  };
  if (moves[event.key]) {
    moveTo(moves[event.key](), true);
    spans[state.token].scrollIntoView({ block: "nearest" });
  } else if ((event.key === "Enter" || event.key === " ") && token >= 0) {
    setPinned(!state.pinned);
  } else {
    return;
  }
  event.preventDefault();
});

addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (state.pinned) setPinned(false);
  else moveTo(-1);
});

strip.addEventListener("click", (event) => {
  const token = Math.floor((event.offsetX / strip.clientWidth) * data.length);
  spans[Math.min(Math.max(token, 0), data.length - 1)].scrollIntoView({ block: "center" });
});

// ---- tiles ----

const tileAt = (event) => {
  const button = event.target.closest?.("button[data-tile]");
  return button ? data.tiles[button.dataset.tile] : null;
};

function preview(tile) {
  if (tile === state.preview) return;
  state.preview = tile;
  repaint();
}

grid.addEventListener("pointerover", (event) => {
  if (event.pointerType !== "touch") preview(tileAt(event));
});
grid.addEventListener("pointerleave", () => preview(null));
grid.addEventListener("click", (event) => {
  const tile = tileAt(event);
  if (!tile) return;
  if (!state.picked.delete(tile.index)) state.picked.add(tile.index);
  choose();
});

list.addEventListener("pointerover", (event) => point(event.target.closest?.("[data-key]")));
list.addEventListener("pointerleave", () => point(null));
list.addEventListener("click", (event) => {
  const chip = event.target.closest?.("[data-key]");
  if (chip) spans[chip.dataset.key].scrollIntoView({ block: "center" });
});

let pointed = null;

function point(chip) {
  pointed?.classList.remove("pointed");
  pointed = chip ? spans[chip.dataset.key] : null;
  pointed?.classList.add("pointed");
}

// ---- filters ----

const bound = (id, otherwise) => ($(id).value === "" ? otherwise : Number($(id).value));

function filter() {
  const layer = $("layer").value;
  const window = [bound("window-from", 0), bound("window-to", Infinity)];
  const width = [bound("width-from", 0), bound("width-to", 1)];
  state.shown = data.tiles.filter(
    (tile) =>
      (layer === "" || tile.layer === Number(layer)) &&
      tile.window >= window[0] && tile.window <= window[1] &&
      tile.width >= width[0] && tile.width <= width[1],
  );
  const shown = new Set(state.shown.map((tile) => tile.index));
  for (const index of state.picked) if (!shown.has(index)) state.picked.delete(index);
  for (const { tile, button } of cells) button.disabled = !shown.has(tile.index);
  choose();
}

function choose() {
  state.byTiles = $("colour").value === "tiles";
  for (const { tile, button } of cells) {
    button.setAttribute("aria-pressed", String(state.picked.has(tile.index)));
  }
  const tiles = chosenTiles();
  let kept = 0, pairs = 0;
  for (const tile of tiles) {
    kept += tile.kept;
    pairs += tile.pairs;
  }
  $("summary").textContent =
    `${tiles.length} of ${data.tiles.length} tiles, ${count(data.length)} tokens: ` +
    `${percentRejected(kept, pairs)} of the keys in their windows are rejected`;
  drawLegend();
  repaint();
}

$("filters").addEventListener("input", filter); // numbers as they are typed
$("filters").addEventListener("change", filter); // a choice made by keyboard or a program
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("filters").addEventListener("reset", () => {
  state.picked.clear();
  setTimeout(filter); // the fields are emptied after this event
});

// ---- start ----

function describeFilters() {
  $("beyond").textContent = `not among a tile's ${data.most} strongest`;
  for (let layer = 0; layer < data.layers; layer++) $("layer").add(new Option(layer, layer));
  const range = (values) => [Math.min(...values), Math.max(...values)];
  const windows = range(data.tiles.map((tile) => tile.window));
  const widths = range(data.tiles.map((tile) => tile.width));
  ["from", "to"].forEach((end, i) => {
    $(`window-${end}`).placeholder = windowText(windows[i]);
    $(`width-${end}`).placeholder = widths[i].toFixed(2);
  });
}

function measure() {
  stripSurface = canvasOf(strip);
  for (const cell of cells) cell.surface = canvasOf(cell.canvas);
  drawLegend();
  repaint();
}

buildGrid();
describeFilters();
readColours();
dark.addEventListener("change", () => {
  readColours();
  for (const key of lit) paintKey(key, drawn[key]);
  drawLegend();
  repaint();
});
new ResizeObserver(measure).observe(grid);
measure();
filter();
