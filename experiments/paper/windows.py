"""Windows, widths and shares accepted of a trained model ("Screening Is Enough", Fig. 10).

The paper shows all 64 tiles of a trained model on a text of 203 tokens: ranges differ from tile to
tile, and many keys are rejected. Here: the Multiscreen of the perplexities by position, trained at
256 bytes, on the first 203 bytes of the validation split. (The rows name two commits, of the
training and of the look at its tiles.) The maps of this model, which is shipped, are drawn in
[a notebook](../notebooks/02_inside_a_tile.ipynb); `python -m experiments.evaluate RUN --task
relevance` draws those of any run.

At the paper's scale the model is that of Psi = 8. The paper's text is its own abstract; here it is
the first 203 tokens of the validation split, and `--relevance.text` takes any other.

    python -m experiments.paper run windows

It gave: windows of 2 to 200 bytes, widths of 0.2 to 0.93, 76 % of the pairs inside the windows
rejected; in the first four of six layers half of the queries or more accept nothing, on average
over a layer's tiles.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.paper import plots, positions, text_runs
from experiments.paper.study import Row, Run
from multiscreen_jax.inspect import plot_windows_widths

TITLE = "Windows and widths"


def runs(scale: str) -> list[Run]:
    if scale == "paper":
        trained = text_runs.base("multiscreen_4m", 0)
        command = (
            f"experiments.evaluate {{runs}}/{trained.name}/train --task relevance "
            "--relevance.tokens 203 --output {run}/base-tiles"
        )
        columns = {**trained.columns, "trained": text_runs.STAGES["base"]}
        return [Run("windows-multiscreen_4m", (command,), 0, columns, needs=(trained,))]
    # The run of `positions`, whose tiles are looked at.
    return [run for run in positions.runs(scale) if run.columns["model"] == "multiscreen"]


def measure(run: Run, folder: Path) -> list[Row]:
    return plots.evaluation(folder / "base-tiles" / "relevance.json")["rows"]


def figure(rows: list[Row]) -> Figure:
    window, width = (_by_tile(rows, column) for column in ("window", "width"))
    return plot_windows_widths(window, width)


def report(rows: list[Row]) -> str:
    lines = []
    for (layer,), tiles in plots.groups(rows, "layer").items():
        window = sorted(row["window"] for row in tiles)
        width = sorted(row["width"] for row in tiles)
        pairs = sum(row["pairs_in_window"] for row in tiles)
        lines.append(
            {
                "layer": str(layer),
                "windows": f"{window[0]:.3g} to {window[-1]:.3g}",
                "widths": f"{width[0]:.2f} to {width[-1]:.2f}",
                "accepted": f"{sum(row['pairs_accepted'] for row in tiles) / pairs:.1%}",
                "queries with no key": f"{plots.mean(r['share_silent'] for r in tiles):.1%}",
            }
        )
    pairs = sum(row["pairs_in_window"] for row in rows)
    share = sum(row["pairs_accepted"] for row in rows) / pairs
    beyond = sum(row["window"] > (row.get("trained") or positions.TRAINED["base"]) for row in rows)
    windows = [row["window"] for row in rows]
    spread, most = max(windows) / min(windows), share < 0.5
    return f"""{plots.table(lines)}

Of all pairs inside the windows {1 - share:.1%} are rejected: {"many, as" if most else "fewer than"}
in the paper. The longest window is {spread:.0f} times the shortest: ranges differ from tile to
tile, {"as" if spread > 2 else "unlike"} in the paper. {beyond} of {len(rows)} windows are longer
than the training length; the inference rule makes them infinite."""


def _by_tile(rows: list[Row], column: str) -> np.ndarray:
    heads = 1 + max(row["head"] for row in rows)
    return np.array([row[column] for row in rows]).reshape(-1, heads)
