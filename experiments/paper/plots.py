"""What the studies' figures and tables share."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.paper.study import Row
from multiscreen_jax.json_files import read_object

COLOURS = {"multiscreen": "#7b2382", "transformer": "#1f77a4"}
INK, FAINT = "#23262d", "#7a808c"


def panels(count: int, width: float = 4.6, height: float = 3.5, **options) -> tuple[Figure, list]:
    """A figure with axes side by side."""
    figure = Figure(figsize=(width * count, height), facecolor="white", layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False, **options)[0])
    for ax in axes:
        style(ax)
    return figure, axes


def style(ax: Axes) -> None:
    """Thin axes, light grid."""
    ax.grid(True, color="#e6e8ec", linewidth=0.7)
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color="#b4b8c0")
    ax.tick_params(length=2.5, color="#b4b8c0", labelsize=8.5, labelcolor=INK)


def legend(ax: Axes, **options) -> None:
    """A legend that names lines with the same label once."""
    found = {label: line for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    ax.legend(found.values(), found.keys(), frameon=False, **options)


def table(rows: Sequence[dict[str, str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [
        names,
        ["---", *["--:"] * (len(names) - 1)],
        *([row.get(name, "") for name in names] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def groups(rows: Iterable[Row], *columns: str) -> dict[tuple, list[Row]]:
    """Rows by the values of some columns, in order of appearance."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


def short(tokens: int) -> str:
    """A power of two as a tick's label."""
    return f"{tokens // 1024}K" if tokens >= 1024 else str(tokens)


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def metrics(folder: Path) -> list[Row]:
    """The lines of a training run's log."""
    path = folder / "metrics.jsonl"
    return [read_object(line, str(path)) for line in path.read_text().splitlines()]


def evaluation(path: Path) -> Row:
    """What `experiments.evaluate` wrote of a task."""
    return read_object(path)
