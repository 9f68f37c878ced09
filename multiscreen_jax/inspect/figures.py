"""Figures of tiles. Every function returns a matplotlib Figure and needs no display:

plot_relevance(maps).savefig("relevance.png", dpi=150)
"""

import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from multiscreen_jax.inspect.relevance import RelevanceMaps
from multiscreen_jax.inspect.tables import format_window

_OUTSIDE = "#dcdee3"  # where a tile does not look
_REJECTED = "#ffffff"  # looked at, and exactly nothing
_INK, _FAINT = "#23262d", "#7a808c"
_LABELLED_TOKENS = 40  # a longer prompt is printed below the maps instead
_MOST_CELLS = 256  # per side of a map; longer prompts are pooled


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
    caption = [] if tokens_text is None or labels is not None else _caption(tokens_text, heads)
    panel = float(np.clip(13.6 / max(heads, 4), 1.5, 3.0))
    grid = _Grid(
        rows=layers,
        columns=heads,
        panel=panel,
        gap=(0.16 if labels is None else 0.5, 0.44 if labels is None else 0.62),
        left=0.72,
        right=1.05,
        top=0.62 + (0.42 if title else 0.0),
        bottom=0.62 + 0.19 * len(caption) + (0.15 if labels else 0.0),
    )
    figure, axes = grid.make()
    norm, colours = PowerNorm(0.5, vmin=0, vmax=1), _accepted_colours()
    inside, share = maps.in_window(), maps.share_accepted()
    for (row, head), ax in np.ndenumerate(axes):
        relevance = _pool(maps.relevance[row, head])
        outside = ~_pool(inside[row, head])
        _draw_map(ax, relevance, outside, length, norm, colours)
        _style_map(ax, length, row == layers - 1, head == 0, labels)
        size = 7.5 if panel < 2 else 8.5
        ax.set_title(
            f"layer {maps.layers[row]}, head {head}\n"
            f"w {format_window(maps.window[row, head])}   r {maps.width[row, head]:.2f}   "
            f"{_percent(share[row, head])}",
            fontsize=size,
            color=_INK,
            pad=3,
            linespacing=1.25,
        )
    _colour_bar(figure, grid, norm, colours)
    _frame_texts(figure, grid, title, caption)
    return figure


def plot_windows_widths(
    window: Float[np.ndarray, "N H"], width: Float[np.ndarray, "N H"], title: str | None = None
) -> Figure:
    """Every tile's window and width: by layer, and one against the other.

    Infinite windows are drawn on a line of their own above the others.
    """
    window, width = np.asarray(window, np.float64), np.asarray(width, np.float64)
    if window.ndim != 2 or window.shape != width.shape:
        raise ValueError(
            f"window and width must share one shape [N, H], got {window.shape} and {width.shape}"
        )
    layers, heads = window.shape
    figure = Figure(figsize=(9.6, 3.9), facecolor="white")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.15, top=0.82, wspace=0.09)
    height, ceiling = _window_heights(window)
    layer = np.broadcast_to(np.arange(layers)[:, None], window.shape)
    across = (np.arange(heads) - (heads - 1) / 2) * (0.62 / max(heads, 2))
    dots = {
        "s": float(np.clip(2600 / window.size, 9, 60)),
        "linewidths": 0.6,
        "edgecolors": "white",
    }
    by_layer = ListedColormap(colormaps["viridis"](np.linspace(0.05, 0.92, max(layers, 2))))
    shown = left.scatter(
        layer + across, height, c=width, cmap=_accepted_colours(), vmin=0, vmax=1, **dots
    )
    points = right.scatter(
        width, height, c=layer, cmap=by_layer, vmin=-0.5, vmax=max(layers, 2) - 0.5, **dots
    )
    left.set(
        xlabel="layer (heads side by side)", ylabel="window (tokens)", xlim=(-0.6, layers - 0.4)
    )
    right.set(xlabel="width r", xlim=(0, 1))
    for ax in (left, right):
        _style_window_axis(ax, window, ceiling)
    left.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    _bar_above(figure, left, shown, "width r", None)
    _bar_above(figure, right, points, "layer", MaxNLocator(8, integer=True))
    if title:
        figure.suptitle(title, fontsize=11, color=_INK, x=0.08, ha="left", y=0.99)
    return figure


def _accepted_colours() -> Colormap:
    """Perceptually even, from a colour that is clearly not white to almost black."""
    return ListedColormap(colormaps["magma_r"](np.linspace(0.16, 0.95, 256)), name="accepted")


class _Grid:
    """Maps of equal size with margins in inches, so that text keeps its size at any grid."""

    def __init__(
        self,
        rows: int,
        columns: int,
        panel: float,
        gap: tuple[float, float],
        left: float,
        right: float,
        top: float,
        bottom: float,
    ) -> None:
        self.rows, self.columns = rows, columns
        self.panel, self.gap = panel, gap
        self.left, self.right, self.top, self.bottom = left, right, top, bottom
        self.width = left + columns * panel + (columns - 1) * gap[0] + right
        self.height = bottom + rows * panel + (rows - 1) * gap[1] + top

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
    image[outside] = _rgba(_OUTSIDE)
    ax.imshow(image, extent=extent, interpolation="nearest", aspect="equal")


def _style_map(
    ax: Axes, length: int, lowest: bool, leftmost: bool, labels: Sequence[str] | None
) -> None:
    for spine in ax.spines.values():
        spine.set(color="#b4b8c0", linewidth=0.6)
    ax.tick_params(length=2, width=0.5, color="#b4b8c0", labelsize=7, labelcolor=_FAINT, pad=1.5)
    if labels is not None:
        ticks, names = np.arange(length), [_visible(label) for label in labels]
        size = max(3.0, min(7.0, 150 / length))
        ax.set_xticks(ticks, names, rotation=90, fontsize=size)
        ax.set_yticks(ticks, names, fontsize=size)
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
    height = min(area, 4.5)
    middle = grid.bottom + area / 2
    left = grid.width - grid.right + 0.22
    ax = figure.add_axes((grid.x(left), grid.y(middle - height / 2), grid.x(0.14), grid.y(height)))
    bar = figure.colorbar(ScalarMappable(norm, colours), cax=ax)
    bar.outline.set_visible(False)
    bar.set_ticks([0.01, 0.1, 0.25, 0.5, 1], labels=["0.01", "0.1", "0.25", "0.5", "1"])
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(length=2, width=0.5, labelsize=7.5, labelcolor=_INK, color=_FAINT)
    bar.set_label("relevance of accepted keys", fontsize=8.5, color=_INK)


def _frame_texts(figure: Figure, grid: _Grid, title: str | None, caption: list[str]) -> None:
    centre = grid.x(grid.left + (grid.width - grid.left - grid.right) / 2)
    text_height = 0.19 * len(caption)
    figure.text(
        centre, grid.y(0.2 + text_height), "key position", ha="center", fontsize=9, color=_INK
    )
    figure.text(
        grid.x(0.2),
        grid.y(grid.bottom + (grid.height - grid.top - grid.bottom) / 2),
        "query position",
        rotation=90,
        va="center",
        ha="center",
        fontsize=9,
        color=_INK,
    )
    if title:
        figure.text(
            grid.x(grid.left),
            grid.y(grid.height - 0.34),
            title,
            fontsize=12,
            color=_INK,
            weight="bold",
        )
    legend = "grey: outside the window or future     white: rejected, exactly 0"
    figure.text(
        grid.x(grid.width - grid.right),
        grid.y(0.2 + text_height),
        legend,
        ha="right",
        fontsize=7.5,
        color=_FAINT,
    )
    for line, text in enumerate(caption):
        figure.text(
            grid.x(grid.left),
            grid.y(text_height - 0.19 * line - 0.08),
            text,
            fontsize=7.5,
            color=_FAINT,
            family="monospace",
        )


def _caption(tokens_text: Sequence[str], heads: int) -> list[str]:
    """At most three lines of the prompt."""
    text = " ".join("".join(tokens_text).split())
    lines = textwrap.wrap(text.replace("$", r"\$"), width=max(60, 26 * heads))
    if len(lines) > 3:
        lines = [*lines[:2], lines[2] + " ..."]
    return lines


def _visible(label: str) -> str:
    """Blanks of a label as visible signs; a dollar sign would start mathematics."""
    return label.replace("\n", "⏎").replace(" ", "␣").replace("$", r"\$")


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


def _window_heights(window: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Heights on a logarithmic axis; infinite windows go above all others."""
    finite = window[np.isfinite(window)]
    if finite.size == window.size:
        return window, None
    ceiling = 3 * max(finite.max(initial=2.0), 10.0)
    return np.where(np.isfinite(window), window, ceiling), ceiling


def _style_window_axis(ax: Axes, window: np.ndarray, ceiling: float | None) -> None:
    finite = window[np.isfinite(window)]
    low, high = finite.min(initial=2.0), finite.max(initial=10.0)
    ax.set_yscale("log", base=2)
    ax.set_ylim(low / 1.5, 1.6 * (high if ceiling is None else ceiling))
    powers = 2.0 ** np.arange(np.ceil(np.log2(low / 1.5)), np.log2(high * 1.5))
    powers = powers[:: max(1, len(powers) // 10)]
    ticks = list(powers) if ceiling is None else [*powers, ceiling]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: "∞" if y == ceiling else f"{y:,g}"))
    if ceiling is not None:
        ax.axhspan(ceiling / 1.6, ceiling * 1.6, color=_OUTSIDE, alpha=0.45, zorder=0, lw=0)
    ax.grid(True, color="#e6e8ec", linewidth=0.7)
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color="#b4b8c0")
    ax.tick_params(length=2.5, color="#b4b8c0", labelsize=8.5, labelcolor=_INK)
    ax.xaxis.label.set(fontsize=9.5, color=_INK)
    ax.yaxis.label.set(fontsize=9.5, color=_INK)


def _bar_above(figure: Figure, ax: Axes, drawn: object, label: str, locator: object) -> None:
    """A thin horizontal colour bar over the right half of an axis."""
    box = ax.get_position()
    cax = figure.add_axes((box.x0 + 0.55 * box.width, box.y1 + 0.045, 0.45 * box.width, 0.022))
    bar = figure.colorbar(drawn, cax=cax, orientation="horizontal")  # pyright: ignore
    bar.outline.set_visible(False)
    if locator is not None:
        bar.locator = locator
        bar.update_ticks()
    bar.ax.xaxis.set_ticks_position("top")
    bar.ax.tick_params(length=0, labelsize=7.5, labelcolor=_INK, pad=1)
    cax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8.5, color=_INK)
