"""Figures of evaluations; each returns a matplotlib Figure and needs no display."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import NullLocator, StrMethodFormatter

_INK, _FAINT = "#23262d", "#7a808c"


def plot_positions(rows: Sequence[dict[str, Any]], trained_length: int | None = None) -> Figure:
    """Perplexity against position, from `loss_by_position`; the training length is marked."""
    figure = Figure(figsize=(6.4, 3.8), facecolor="white", layout="constrained")
    ax = figure.subplots()
    edges = [row["start"] for row in rows] + [rows[-1]["end"]]
    ax.stairs([row["perplexity"] for row in rows], edges, baseline=None, color="#7b2382", lw=2)
    if trained_length is not None and trained_length < edges[-1]:
        ax.axvline(trained_length, color=_FAINT, lw=1, ls=(0, (4, 3)))
        ax.annotate(
            " training length",
            (trained_length, 1),
            xycoords=("data", "axes fraction"),
            va="top",
            fontsize=8.5,
            color=_FAINT,
        )
    ax.set(xlabel="position (tokens)", ylabel="perplexity", xlim=(edges[0], edges[-1]))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _style(ax)
    ax.grid(True, axis="y", color="#e6e8ec", lw=0.7)
    return figure


def plot_retrieval(rows: Sequence[dict[str, Any]]) -> Figure:
    """Exact match by context length and depth, from `retrieval_grid`."""
    lengths, depths = ({row[name] for row in rows} for name in ("length", "depth"))
    figure = Figure(
        figsize=(2.4 + 0.85 * len(lengths), 1.4 + 0.55 * len(depths)),
        facecolor="white",
        layout="constrained",
    )
    image = draw_retrieval(figure.subplots(), rows)
    bar = figure.colorbar(image, ax=image.axes, label="exact match", pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(labelsize=8, length=2)
    return figure


def draw_retrieval(ax: Axes, rows: Sequence[dict[str, Any]]) -> AxesImage:
    """The grid of `plot_retrieval`, in percent; a cell without a row stays empty."""
    lengths = list(dict.fromkeys(row["length"] for row in rows))
    depths = list(dict.fromkeys(row["depth"] for row in rows))
    score = np.full((len(depths), len(lengths)), np.nan)
    for row in rows:
        score[depths.index(row["depth"]), lengths.index(row["length"])] = row["exact_match"]
    image = ax.imshow(score, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(score):
        if np.isfinite(value):
            colour = "white" if value < 0.6 else _INK
            text = f"{100 * value:.0f}"
            ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    ax.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    ax.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
    ax.set(xlabel=f"context length ({rows[0]['unit']})", ylabel="depth")
    _style(ax)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return image


def _style(ax: Any) -> None:
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color="#b4b8c0")
    ax.tick_params(length=2.5, color="#b4b8c0", labelsize=8.5, labelcolor=_INK)
    ax.set_axisbelow(True)
