"""Loss by position of log-linear models and their parents (the figure of "Log-Linear Attention").

In the paper, on books of 16K tokens, both log-linear models are below their parents at all
positions. Here: the quickstart's models of 0.46 million parameters, 600 steps of 4 x 1024 bytes of
speeches, read in rows of the training length. Needles in a haystack were not asked for: these
models are too small.

At the paper's scale also its table of needles in a haystack, by length and number of needles, which
needs models of that size.

    python -m experiments.paper run log_linear_positions

It gave, with one seed: both log-linear models above their parents at every position, by 0.01 to
0.04 nats per byte, unlike the paper: at this size and length the levels do not help.
"""

from pathlib import Path

from matplotlib.figure import Figure

from experiments.paper import plots
from experiments.paper.study import Row, Run

TITLE = "Log-linear models: loss by position"
EDGES = (0, 16, 32, 64, 128, 256, 512, 1024)
_PARENTS = {"log_linear_mamba2": "mamba2", "log_linear_gdn": "gdn"}
_MODELS = [name for pair in _PARENTS.items() for name in pair]
_PAPER = {
    "mamba2": "mamba2_mlp_800m",
    "gdn": "gdn_800m",
    "log_linear_mamba2": "log_linear_mamba2_800m",
    "log_linear_gdn": "log_linear_gdn_800m",
}


def runs(scale: str) -> list[Run]:
    return [(_run if scale == "small" else _paper_run)(model) for model in _MODELS]


def _run(model: str) -> Run:
    edges = " ".join(map(str, EDGES))
    return Run(
        f"log_linear_positions-{model}",
        (
            f"experiments.train quickstart_{model} --train.output-dir {{run}}/train "
            "--data.sequence-length 1024 --data.batch-size 4 --mesh.cpu-devices 1 "
            "--train.sample-prompts",
            f"experiments.evaluate {{run}}/train --task positions --positions.edges {edges} "
            "--output {run}/positions",
        ),
        0,
        {"model": model},
    )


def _paper_run(model: str) -> Run:
    edges = " ".join(str(2**n) for n in range(6, 15))
    books = "--data.source books.jsonl"
    needles = [
        f"experiments.evaluate {{run}}/train --task needle {books} --needle.keys {keys} "
        f"--needle.lengths 4096 8192 16384 --output {{run}}/needles{keys}"
        for keys in (1, 4)
    ]
    return Run(
        f"log_linear_positions-{_PAPER[model]}",
        (
            f"experiments.train {_PAPER[model]} --train.output-dir {{run}}/train",
            f"experiments.evaluate {{run}}/train --task positions {books} --positions.edges 0 "
            f"{edges} --output {{run}}/positions",
            *needles,
        ),
        0,
        {"model": model},
    )


def measure(run: Run, folder: Path) -> list[Row]:
    rows = plots.evaluation(folder / "positions" / "positions.json")["rows"]
    columns = ("keys", "length", "depth", "trials", "exact_match")
    for found in sorted(folder.glob("needles*/needle.json")):
        rows += [{name: row[name] for name in columns} for row in plots.evaluation(found)["rows"]]
    return rows


def figure(rows: list[Row]) -> Figure:
    drawn, axes = plots.panels(2, sharey=True)
    found = {model: cells for (model,), cells in plots.groups(_losses(rows), "model").items()}
    for ax, (model, parent) in zip(axes, _PARENTS.items(), strict=True):
        for name, colour in ((parent, "#8a8f99"), (model, "#4d7a4f")):
            cells = found.get(name, [])
            places = range(len(cells))
            ax.plot(places, [row["loss"] for row in cells], marker="o", color=colour)
            ax.lines[-1].set_label(_shown(name))
            ax.set_xticks(places, [plots.short(row["end"]) for row in cells])
        ax.set(xlabel="end of the stretch (tokens)")
        ax.legend(frameon=False, fontsize=9)
    axes[0].set_ylabel("loss (nats per token)")
    return drawn


def report(rows: list[Row]) -> str:
    lines = []
    for (model,), cells in plots.groups(_losses(rows), "model").items():
        shown = {f"{row['start']} to {row['end']}": f"{row['loss']:.3f}" for row in cells}
        lines.append({"": _shown(model), **shown})
    text = f"Nats per token, one seed:\n\n{plots.table(lines)}"
    for model, parent in _PARENTS.items():
        text += _against_parent(model, parent, _losses(rows))
    return text + _needles([row for row in rows if row.get("keys")])


def _against_parent(model: str, parent: str, rows: list[Row]) -> str:
    losses = {
        name: [row["loss"] for row in rows if row["model"] == name] for name in (model, parent)
    }
    if not all(losses.values()):
        return ""
    below = sum(mine < its for mine, its in zip(*losses.values(), strict=True))
    return (
        f"\n\n{_shown(model)} is below {_shown(parent)} in {below} of {len(losses[model])} "
        "stretches; in the paper, in all."
    )


def _needles(rows: list[Row]) -> str:
    if not rows:
        return ""
    lines = []
    for (model,), cells in plots.groups(rows, "model").items():
        scores = {
            f"{keys} in {length:,}": f"{plots.mean(row['exact_match'] for row in one):.1%}"
            for (keys, length), one in plots.groups(cells, "keys", "length").items()
        }
        lines.append({"": _shown(model), **scores})
    return f"\n\nExact match by needles and tokens, mean over depths:\n\n{plots.table(lines)}"


def _losses(rows: list[Row]) -> list[Row]:
    return [row for row in rows if not row.get("keys")]


def _shown(model: str) -> str:
    return model.replace("_", " ")
