"""One HTML file in which to read a text and see, token by token, which keys each tile accepted.

    texts = tokenizer.token_texts(tokens)
    mj.inspect.explore(model, params, tokens, texts).save("explorer.html")

In a notebook the last expression of a cell shows it in place.
"""

import base64
import dataclasses
import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, ListedColormap, to_hex

from multiscreen_jax.inspect.accepted import AcceptedKeys, accepted_keys
from multiscreen_jax.inspect.figures import accepted_colours
from multiscreen_jax.paths import require_local

_SCRIPTS = ("explorer_data.js", "explorer.js", "explorer_input.js")
_NOTEBOOK_HEIGHT = 760  # pixels


@dataclasses.dataclass(frozen=True, repr=False)
class Explorer:
    """A self-contained page: no network, no server, no other file.

    Attributes:
        html: the page.
    """

    html: str

    def save(self, path: str | Path) -> Path:
        """Writes the page as UTF-8; the folder is made if missing. Returns the path."""
        require_local("path", path)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html, encoding="utf-8")
        return path

    def __repr__(self) -> str:
        return f"Explorer({len(self.html) / 1e6:.1f} MB of HTML; save(path) writes it)"

    def _repr_html_(self) -> str:
        # Sandboxed without the notebook's origin: the page reads and changes nothing around it.
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" sandbox="allow-scripts" '
            f'style="width:100%;height:{_NOTEBOOK_HEIGHT}px;border:0"></iframe>'
        )


def explore(
    model: Any,
    params: Any,
    tokens: Any,
    tokens_text: Sequence[str] | None = None,
    *,
    segment_ids: Any = None,
    most: int = 32,
    title: str = "Accepted keys",
) -> Explorer:
    """The explorer of one prompt, for thousands of tokens and a hundred tiles.

    Point at a token (or move with the arrow keys, or tap): the keys that the tiles accepted are
    coloured by relevance on the scale of `plot_relevance`; what their windows hold besides is
    blank, and got exactly nothing; what lies outside is grey. Where a tile accepted more than
    `most` keys its window is tinted instead of blank: a key there is rejected, or weaker than all
    that are coloured. Beside the text every tile has a picture of its own keys by distance, and a
    list of them; tiles are chosen by a click, or by layer, window and width.

    Args:
        model, params: a Multiscreen and its parameters.
        tokens: integers [T] or [1, T].
        tokens_text: the text of each token, as `tokenizer.token_texts(tokens)` gives it, shown
            whatever it contains; an empty one is shown as the token's number. None: all numbers.
        segment_ids: documents of a packed row [T] or [1, T], from 1; 0 is padding.
        most: keys kept per tile and token, the strongest; all are counted.
        title: of the page.

    Raises:
        TypeError: another kind of model, or a text that is no string.
        ValueError: those of `accepted_keys`, or texts of another number than tokens.

    Size of the page: about 40 kB, the text, and for every tile 16/3 bytes per token and 4 bytes per
    kept key (up to 65535 tokens; 32/3 and 20/3 above). Cost: that of `accepted_keys`.
    """
    ids = np.asarray(tokens).reshape(-1)
    if tokens_text is not None and len(tokens_text) != ids.size:
        raise ValueError(f"tokens_text has {len(tokens_text)} entries for {ids.size} tokens")
    for number, text in enumerate(tokens_text or ()):
        if not isinstance(text, str):
            raise TypeError(f"tokens_text[{number}] is {text!r}; allowed: strings")
    found = accepted_keys(model, params, tokens, most, segment_ids)
    texts = [f"{token} " for token in ids] if tokens_text is None else list(tokens_text)
    return Explorer(_page(found, texts, ids, title))


def quantise(relevance: np.ndarray) -> np.ndarray:
    """Relevance in (0, 1] as uint8 levels 1 to 255, standing for (level / 255)^2.

    The square root is the colour scale's own, and leaves weak relevance its differences. What is
    accepted never becomes 0.
    """
    return np.clip(np.rint(255 * np.sqrt(relevance)), 1, 255).astype(np.uint8)


def _page(found: AcceptedKeys, texts: list[str], ids: np.ndarray, title: str) -> str:
    parts = {
        "title": html.escape(title),
        "style": _asset("explorer.css"),
        "script": "\n".join(["'use strict';", *map(_asset, _SCRIPTS)]),
        "data": _script_safe(_payload(found, texts, ids)),
    }
    # In one pass, so that a text which looks like a placeholder stays a text.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("explorer.html"))


def _payload(found: AcceptedKeys, texts: list[str], ids: np.ndarray) -> dict[str, Any]:
    """What explorer_data.js reads; arrays are little-endian, in base64, tile by tile."""
    length, most = found.position.shape[2:]
    index = np.uint16 if length < 2**16 else np.uint32
    kept = found.relevance > 0
    distance = np.arange(length)[:, None] - found.position
    return {
        "tokens": texts,
        "ids": ids.tolist(),
        "most": most,
        "wide": index is np.uint32,
        "window": [[w if np.isfinite(w) else None for w in row] for row in found.window.tolist()],
        "width": found.width.tolist(),
        "reach": _base64(found.reach, np.uint32),
        "accepted": _base64(found.accepted, index),
        "total": _base64(found.total_relevance.view(np.uint32) >> 16, np.uint16),
        "distance": _base64(distance[kept], index),
        "level": _base64(quantise(found.relevance[kept]), np.uint8),
        "palettes": {name: _hex(colours) for name, colours in _palettes().items()},
    }


def _palettes() -> dict[str, Colormap]:
    """The scale of the figures; and for dark pages one where strong is bright, not dark."""
    dark = ListedColormap(colormaps["magma"](np.linspace(0.3, 1.0, 256)))
    return {"light": accepted_colours(), "dark": dark}


def _hex(colours: Colormap) -> str:
    return "".join(to_hex(colours(level))[1:] for level in range(256))


def _base64(values: np.ndarray, dtype: Any) -> str:
    little_endian = np.dtype(dtype).newbyteorder("<")
    return base64.b64encode(np.ascontiguousarray(values, little_endian)).decode()


def _script_safe(value: Any) -> str:
    """JSON that no text can leave: "</script>" and "<!--" mean something inside a script."""
    text = json.dumps(value, separators=(",", ":"))  # ASCII: lone surrogates survive as escapes
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    path = resources.files("multiscreen_jax.inspect") / "assets" / name
    return path.read_text(encoding="utf-8").rstrip("\n")
