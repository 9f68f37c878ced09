// The numbers of the page, decoded once and read by tile and token; see explorer.py.
const data = (() => {
  const raw = JSON.parse(document.getElementById("data").textContent);

  function bytes(base64) {
    const text = atob(base64);
    const out = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) out[i] = text.charCodeAt(i);
    return out;
  }

  const Index = raw.wide ? Uint32Array : Uint16Array;
  const length = raw.tokens.length;
  const accepted = new Index(bytes(raw.accepted).buffer);
  const distance = new Index(bytes(raw.distance).buffer);
  const level = bytes(raw.level);
  const reach = new Uint32Array(bytes(raw.reach).buffer);
  // The upper half of a float32 comes in, the lower half is zero.
  const halves = new Uint16Array(bytes(raw.total).buffer);
  const total = new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer);
  // Where the kept keys of each tile and token start.
  const start = new Uint32Array(accepted.length + 1);
  for (let i = 0; i < accepted.length; i++) {
    start[i + 1] = start[i] + Math.min(accepted[i], raw.most);
  }

  const tiles = raw.window.flatMap((row, layer) =>
    row.map((window, head) => ({
      index: layer * row.length + head,
      layer,
      head,
      window: window ?? Infinity,
      width: raw.width[layer][head],
    })),
  );

  // Keys in a tile's window at a token: those of its document up to itself.
  const inWindow = (tile, token) => Math.min(reach[token], Math.ceil(tile.window));

  for (const tile of tiles) {
    tile.pairs = tile.kept = 0;
    for (let token = 0; token < length; token++) {
      tile.pairs += inWindow(tile, token);
      tile.kept += accepted[tile.index * length + token];
    }
  }

  return {
    length,
    tiles,
    heads: raw.window[0].length,
    layers: raw.window.length,
    most: raw.most,
    tokens: raw.tokens,
    ids: raw.ids,
    palettes: raw.palettes,
    reach,
    inWindow,
    accepted: (tile, token) => accepted[tile.index * length + token],
    total: (tile, token) => total[tile.index * length + token],
    // Calls visit(key, level, distance) for every kept key, strongest first.
    visit(tile, token, visit) {
      const at = tile.index * length + token;
      for (let i = start[at]; i < start[at + 1]; i++) {
        visit(token - distance[i], level[i], distance[i]);
      }
    },
    // Whether a tile accepted more keys than were kept: then a key of its window that is not among
    // them is either rejected or weaker than all of them.
    isCut: (tile, token) => accepted[tile.index * length + token] > raw.most,
    // How many keys were kept at distances 0, 1 to 2, 3 to 6, 7 to 14, ... over the whole text.
    histogram(tile) {
      const counts = new Uint32Array(Math.ceil(Math.log2(1 + length)));
      const first = start[tile.index * length];
      const end = start[(tile.index + 1) * length];
      for (let i = first; i < end; i++) counts[31 - Math.clz32(1 + distance[i])]++;
      return counts;
    },
  };
})();

// Levels 1 to 255 stand for the relevance (level / 255)^2: fine where relevance is weak.
const relevanceOf = (level) => (level / 255) ** 2;

// ---- words ----

const count = (n) => n.toLocaleString("en");
const percent = (share) =>
  share === 0 ? "0 %" : share < 0.001 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`;
// Never 100 % where something was accepted.
const percentRejected = (kept, pairs) =>
  kept && kept < pairs * 0.0005 ? ">99.9 %" : percent(1 - kept / Math.max(pairs, 1));
const relevanceText = (value) =>
  value < 0.001 ? "<0.001" : value < 0.1 ? value.toFixed(3) : value.toFixed(2);
const windowText = (window) =>
  !isFinite(window) ? "∞" : window < 10 ? window.toFixed(2)
    : window < 1000 ? window.toFixed(1) : count(Math.round(window));
const tileName = (tile) => `layer ${tile.layer}, head ${tile.head}`;

// What cannot be seen, or would turn the text around it, by its code; the rest as it is.
const unseen = new RegExp(
  "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u200b\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069\\ufeff]" +
    "|[\\ud800-\\udbff](?![\\udc00-\\udfff])|(?<![\\ud800-\\udbff])[\\udc00-\\udfff]",
  "g",
);

function shown(text) {
  return text.replace(
    unseen,
    (c) => {
      const code = c.charCodeAt(0);
      if (code < 0x20) return String.fromCharCode(0x2400 + code);
      if (code === 0x7f) return "\u2421";
      // Python's surrogateescape: a byte that was no text.
      if (code >= 0xdc80 && code <= 0xdcff) return `\\x${(code - 0xdc00).toString(16)}`;
      return `\\u${code.toString(16).padStart(4, "0")}`;
    },
  );
}

// A token inside a sentence or list, with its blanks visible.
function label(token) {
  const text = data.tokens[token];
  if (text === "") return `⟨${data.ids[token]}⟩`;
  return shown(text).replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣");
}
