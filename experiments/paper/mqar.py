"""Multi-query associative recall ("Log-Linear Attention", MQAR table).

The paper trains two layers on rows of 256 tokens with 4 to 64 pairs until 99 % or the budget ends,
five seeds. Here: `mqar_small`, 4 pairs in 16 tokens of a vocabulary of 256, 3000 steps, each model
at the best rate of a first sweep; asked too for 2 pairs, and in 32 tokens, a length never trained.

    python -m experiments.paper run mqar

It gave, with three seeds: all six models at 96 % or more of 4 pairs; at twice the trained length
Mamba-2 keeps 98 %, the log-linear models 73 to 93 %, Multiscreen 73 to 99 %.
"""

from pathlib import Path

from matplotlib.figure import Figure

from experiments.paper import plots
from experiments.paper.study import Row, Run

TITLE = "Associative recall"
SEEDS = (0, 1, 2)
# Of a sweep with one seed: experiments/bench/results/mqar_small.csv
_RATES = {
    "multiscreen": 2.0**-9,
    "transformer": 3e-3,
    "mamba2": 1e-2,
    "gdn": 1e-3,
    "log_linear_mamba2": 1e-2,
    "log_linear_gdn": 1e-3,
}


def runs(scale: str) -> list[Run]:
    base, seeds = ("mqar_small", SEEDS) if scale == "small" else ("mqar", range(5))
    return [_run(base, model, seed) for seed in seeds for model in _RATES]


def _run(base: str, model: str, seed: int) -> Run:
    config = base if model == "multiscreen" else f"{base}_{model}"
    rate = f" --optim.learning-rate {_RATES[model]}" if base == "mqar_small" else ""
    return Run(
        f"{config}-seed{seed}",
        (
            f"experiments.train {config} --train.output-dir {{run}}/train --train.seed {seed} "
            f"--data.seed {seed}{rate}",
            "experiments.evaluate {run}/train --task mqar --output {run}/asked",
        ),
        seed,
        {"model": model},
    )


def measure(run: Run, folder: Path) -> list[Row]:
    return plots.evaluation(folder / "asked" / "mqar.json")["rows"]


def figure(rows: list[Row]) -> Figure:
    tasks = list(plots.groups(rows, "length", "pairs"))
    drawn, axes = plots.panels(len(tasks), width=3.4, height=2.8, sharey=True)
    for ax, task in zip(axes, tasks, strict=True):
        found = plots.groups(
            [row for row in rows if (row["length"], row["pairs"]) == task], "model"
        )
        for place, ((model,), cells) in enumerate(found.items()):
            colour = plots.COLOURS.get(model, "#4d7a4f")
            scores = [row["accuracy"] for row in cells]
            ax.plot(scores, [place] * len(scores), "o", ms=5, alpha=0.7, color=colour)
        ax.set_yticks(range(len(found)), [model.replace("_", " ") for (model,) in found])
        ax.set(xlabel="accuracy", xlim=(None, 1.01))
        ax.set_title(f"{task[1]} pairs in {task[0]} tokens", fontsize=9.5, color=plots.INK)
    axes[0].invert_yaxis()
    return drawn


def report(rows: list[Row]) -> str:
    lines = []
    for (model,), cells in plots.groups(rows, "model").items():
        line = {"": model.replace("_", " ")}
        for (length, pairs), found in plots.groups(cells, "length", "pairs").items():
            scores = ", ".join(f"{row['accuracy']:.1%}" for row in found)
            line[f"{pairs} pairs in {length}"] = scores
        lines.append(line)
    text = f"Accuracy of the answers, one number per seed:\n\n{plots.table(lines)}"
    for model in ("mamba2", "gdn"):
        text += _against_parent(f"log_linear_{model}", model, rows)
    return text


def _against_parent(model: str, parent: str, rows: list[Row]) -> str:
    """The paper's finding: levels help to recall."""
    cells = plots.groups(rows, "model", "length", "pairs")
    tasks = list(plots.groups(rows, "length", "pairs"))
    scores = {
        (name, task): plots.mean(row["accuracy"] for row in cells[name, *task])
        for name in (model, parent)
        for task in tasks
        if cells.get((name, *task))
    }
    if len(scores) < 2 * len(tasks):
        return ""
    better = sum(scores[model, task] > scores[parent, task] for task in tasks)
    return (
        f"\n\n{model.replace('_', ' ')} is above {parent} in {better} of {len(tasks)} tasks (means "
        "of the seeds); in the paper, at every width at which that one is not solved."
    )
