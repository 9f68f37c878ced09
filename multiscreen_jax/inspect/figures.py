"""Relevance maps as a figure. Needs no display; `plot_relevance(maps).savefig("maps.png")`."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from multiscreen_jax.inspect.relevance import RelevanceMaps
from multiscreen_jax.inspect.tables import format_window
from multiscreen_jax.inspect.texts import figure_text, printable

OUTSIDE = "#dcdee3"  # where a tile does not look
_REJECTED = "#ffffff"  # looked at, and exactly nothing
INK, FAINT = "#23262d", "#7a808c"
_LABELLED_TOKENS = 40  # a longer prompt is printed below the maps instead
_MOST_CELLS = 256  # per side of a map; longer prompts are pooled
_SWATCHES = 0.8  # inches below the colour bar
_CAPTION_POINTS = 7.5


def plot_relevance(
    maps: RelevanceMaps, tokens_text: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """A layer x head grid of relevance maps. (Multiscreen paper, Fig. 10)

    Queries run downwards and keys to the right. Grey is outside the window (or the future), white
    is inside it and rejected, colour is accepted, on a square-root scale so that weak relevance
    shows. Each map is titled with layer and head, window w in tokens, width r, and the share of
    non-zero pairs inside its window.

    Args:
        maps: from `relevance_maps`. Maps of more than 256 tokens are drawn coarser: a cell has the
            largest relevance of its pairs, so that single accepted keys do not vanish.
        tokens_text: the text of each token; labels the axes of up to 40 tokens, and is printed
            below the maps of more.
        title: printed above the grid.
    """
    layers, heads, length, _ = maps.relevance.shape
    if tokens_text is not None and len(tokens_text) != length:
        raise ValueError(f"tokens_text has {len(tokens_text)} entries for maps of {length} tokens")
    labels = tokens_text if tokens_text is not None and length <= _LABELLED_TOKENS else None
    panel = float(np.clip(13.6 / max(heads, 4), 1.5, 3.0))
    caption = (
        [] if tokens_text is None or labels is not None else _caption(tokens_text, heads * panel)
    )
    text_size = 7.0 if labels is None else min(8.0, 60 * panel / length)  # points, of tick labels
    letters = 4 if labels is None else max(len(_visible(label)) for label in labels)
    label_space = letters * text_size / 100  # inches
    grid = _Grid(
        rows=layers,
        columns=heads,
        panel=panel,
        left=0.45 + label_space,
        right=1.05,
        top=0.55 + (0.4 if title else 0.0),
        bottom=0.62 + 0.19 * len(caption) + (label_space if labels else 0.0),
    )
    figure, axes = grid.make()
    norm, colours = PowerNorm(0.5, vmin=0, vmax=1), accepted_colours()
    inside, share = maps.in_window(), maps.share_accepted()
    for (row, head), ax in np.ndenumerate(axes):
        relevance = _pool(maps.relevance[row, head])
        outside = ~_pool(inside[row, head])
        _draw_map(ax, relevance, outside, length, norm, colours)
        _style_map(ax, length, row == layers - 1, head == 0, labels, text_size)
        size = 7.5 if panel < 2 else 8.5
        ax.set_title(
            f"layer {maps.layers[row]}, head {head}\n"
            f"w {format_window(maps.window[row, head])}   r {maps.width[row, head]:.2f}   "
            f"{_percent(share[row, head])}",
            fontsize=size,
            color=INK,
            pad=3,
            linespacing=1.25,
        )
    _colour_bar(figure, grid, norm, colours)
    _frame_texts(figure, grid, title, caption)
    return figure


def accepted_colours() -> Colormap:
    """Perceptually even, from a colour that is clearly not white to almost black."""
    return ListedColormap(colormaps["magma_r"](np.linspace(0.16, 0.95, 256)), name="accepted")


class _Grid:
    """Maps of equal size with margins in inches, so that text keeps its size at any grid."""

    def __init__(
        self,
        rows: int,
        columns: int,
        panel: float,
        left: float,
        right: float,
        top: float,
        bottom: float,
    ) -> None:
        self.rows, self.columns = rows, columns
        self.panel, self.gap = panel, (0.16, 0.44)
        self.left, self.right, self.top, self.bottom = left, right, top, bottom
        self.width = left + columns * panel + (columns - 1) * self.gap[0] + right
        self.height = bottom + rows * panel + (rows - 1) * self.gap[1] + top

    def make(self) -> tuple[Figure, np.ndarray]:
        figure = Figure(figsize=(self.width, self.height), facecolor="white")
        axes = figure.subplots(
            self.rows,
            self.columns,
            squeeze=False,
            gridspec_kw={
                "left": self.left / self.width,
                "right": 1 - self.right / self.width,
                "top": 1 - self.top / self.height,
                "bottom": self.bottom / self.height,
                "wspace": self.gap[0] / self.panel,
                "hspace": self.gap[1] / self.panel,
            },
        )
        return figure, axes

    def x(self, inches: float) -> float:
        """Figure coordinate of a distance from the left edge."""
        return inches / self.width

    def y(self, inches: float) -> float:
        """Figure coordinate of a distance from the lower edge."""
        return inches / self.height


def _draw_map(
    ax: Axes,
    relevance: np.ndarray,
    outside: np.ndarray,
    length: int,
    norm: PowerNorm,
    colours: Colormap,
) -> None:
    extent = (-0.5, length - 0.5, length - 0.5, -0.5)
    image = colours(norm(relevance))
    image[relevance == 0] = _rgba(_REJECTED)
    image[outside] = _rgba(OUTSIDE)
    ax.imshow(image, extent=extent, interpolation="nearest", aspect="equal")


def _style_map(
    ax: Axes,
    length: int,
    lowest: bool,
    leftmost: bool,
    labels: Sequence[str] | None,
    text_size: float,
) -> None:
    for spine in ax.spines.values():
        spine.set(color="#b4b8c0", linewidth=0.6)
    ax.tick_params(length=2, width=0.5, color="#b4b8c0", pad=1.5)
    ax.tick_params(labelsize=text_size, labelcolor=FAINT)
    if labels is not None:
        ticks, names = np.arange(length), [_visible(label) for label in labels]
        ax.set_xticks(ticks, names, rotation=90)
        ax.set_yticks(ticks, names)
    else:
        locator = MaxNLocator(3, integer=True, steps=[1, 2, 5, 10])
        ticks = [tick for tick in locator.tick_values(0, length - 1) if 0 <= tick < length]
        ax.set_xticks(ticks)
        ax.set_yticks(ticks)
    if not lowest:
        ax.tick_params(labelbottom=False)
    if not leftmost:
        ax.tick_params(labelleft=False)


def _colour_bar(figure: Figure, grid: _Grid, norm: PowerNorm, colours: Colormap) -> None:
    area = grid.height - grid.top - grid.bottom
    height = min(area - _SWATCHES, 4.5)
    foot = grid.bottom + (area - height + _SWATCHES) / 2
    left = grid.width - grid.right + 0.22
    ax = figure.add_axes((grid.x(left), grid.y(foot), grid.x(0.14), grid.y(height)))
    bar = figure.colorbar(ScalarMappable(norm, colours), cax=ax)
    bar.outline.set_visible(False)
    bar.set_ticks([0.01, 0.1, 0.25, 0.5, 1], labels=["0.01", "0.1", "0.25", "0.5", "1"])
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(length=2, width=0.5, labelsize=7.5, labelcolor=INK, color=FAINT)
    bar.set_label("relevance of accepted keys", fontsize=8.5, color=INK)
    # Below the bar, the two things that are not on its scale.
    swatches = (("rejected,\nexactly 0", _REJECTED), ("outside\nwindow", OUTSIDE))
    for line, (text, colour) in enumerate(swatches):
        middle = foot - 0.28 - 0.4 * line
        box = (grid.x(left), grid.y(middle - 0.07), grid.x(0.14), grid.y(0.14))
        swatch = figure.add_axes(box, facecolor=colour, xticks=[], yticks=[])
        for spine in swatch.spines.values():
            spine.set(color="#b4b8c0", linewidth=0.6)
        where = (grid.x(left + 0.2), grid.y(middle))
        figure.text(*where, text, va="center", fontsize=7.5, color=INK, linespacing=1.1)


def _frame_texts(figure: Figure, grid: _Grid, title: str | None, caption: list[str]) -> None:
    centre = grid.x(grid.left + (grid.width - grid.left - grid.right) / 2)
    text_height = 0.19 * len(caption)
    figure.text(
        centre, grid.y(0.2 + text_height), "key position", ha="center", fontsize=9, color=INK
    )
    figure.text(
        grid.x(0.2),
        grid.y(grid.bottom + (grid.height - grid.top - grid.bottom) / 2),
        "query position",
        rotation=90,
        va="center",
        ha="center",
        fontsize=9,
        color=INK,
    )
    if title:
        figure.text(
            grid.x(grid.left),
            grid.y(grid.height - 0.36),
            figure_text(title),
            fontsize=12,
            color=INK,
            weight="bold",
        )
    for line, text in enumerate(caption):
        figure.text(
            grid.x(grid.left),
            grid.y(text_height - 0.19 * line - 0.08),
            text,
            fontsize=_CAPTION_POINTS,
            color=FAINT,
            family="monospace",
        )


def _caption(tokens_text: Sequence[str], inches: float) -> list[str]:
    """At most three lines of the prompt."""
    text = " ".join(printable("".join(tokens_text)).split())
    # A monospaced letter is 0.6 of its size wide.
    width = max(20, int(72 * inches / (0.6 * _CAPTION_POINTS)))
    lines = textwrap.wrap(text, width, max_lines=3, placeholder=" ...")
    return [line.replace("$", r"\$") for line in lines]


def _visible(label: str) -> str:
    """A short label with its blanks visible."""
    label = label if len(label) <= 10 else label[:9] + "…"
    label = label.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
    return figure_text(label)


def _percent(share: float) -> str:
    percent = 100 * share
    return "0 %" if percent == 0 else f"{percent:.1f} %" if percent >= 0.1 else "<0.1 %"


def _pool(cells: np.ndarray) -> np.ndarray:
    """The largest value (any, of bools) in squares, so that a side has at most _MOST_CELLS."""
    length = len(cells)
    side = -(-length // _MOST_CELLS)
    if side == 1:
        return cells
    padded = np.pad(cells, (0, -length % side))
    return padded.reshape(len(padded) // side, side, -1, side).max((1, 3))


def _rgba(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] + [1.0])
