"""Windows and widths of all tiles as a figure."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, MaxNLocator, NullLocator

from multiscreen_jax.inspect.figures import INK, OUTSIDE, accepted_colours
from multiscreen_jax.inspect.texts import figure_text


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
        layer + across, height, c=width, cmap=accepted_colours(), vmin=0, vmax=1, **dots
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
        figure.suptitle(figure_text(title), fontsize=11, color=INK, x=0.08, ha="left", y=0.99)
    return figure


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
        ax.axhspan(ceiling / 1.6, ceiling * 1.6, color=OUTSIDE, alpha=0.45, zorder=0, lw=0)
    ax.grid(True, color="#e6e8ec", linewidth=0.7)
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color="#b4b8c0")
    ax.tick_params(length=2.5, color="#b4b8c0", labelsize=8.5, labelcolor=INK)
    ax.xaxis.label.set(fontsize=9.5, color=INK)
    ax.yaxis.label.set(fontsize=9.5, color=INK)


def _bar_above(figure: Figure, ax: Axes, drawn: Any, label: str, locator: Locator | None) -> None:
    """A thin horizontal colour bar over the right half of an axis."""
    box = ax.get_position()
    cax = figure.add_axes((box.x0 + 0.55 * box.width, box.y1 + 0.045, 0.45 * box.width, 0.022))
    bar = figure.colorbar(drawn, cax=cax, orientation="horizontal")
    bar.outline.set_visible(False)
    if locator is not None:
        bar.locator = locator
        bar.update_ticks()
    bar.ax.xaxis.set_ticks_position("top")
    bar.ax.tick_params(length=0, labelsize=7.5, labelcolor=INK, pad=1)
    cax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8.5, color=INK)
