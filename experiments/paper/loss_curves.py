"""Loss and gradient norm along training ("Screening Is Enough", App. C and D).

In the paper the Transformer spikes and diverges at high rates while Multiscreen stays smooth at
2^0; Multiscreen's gradient norm falls to almost nothing, the Transformer's keeps a floor with
spikes. The runs are those of the sweep of learning rates, at each model's good rate and at rate 1.

    python -m experiments.paper run loss_curves

It gave, with three seeds: in the second half, gradient norms of 0.12 (Multiscreen) and 0.72 at the
good rates; at rate 1 losses of at most 2.20 for Multiscreen and up to 9.5 for the Transformer.
"""

from pathlib import Path

from matplotlib.figure import Figure

from experiments.paper import plots, text_runs
from experiments.paper.study import Row, Run

TITLE = "Loss and gradient norm"
SEEDS = (0, 1, 2)
# A good rate of each model, by scale.
GOOD = {
    "small": {"multiscreen": -4, "transformer": -8},
    "paper": {"multiscreen": -4, "transformer": -10},
}


def runs(scale: str) -> list[Run]:
    return [
        text_runs.at_rate(scale, model, exponent, seed)
        for model, good in GOOD[scale].items()
        for exponent in (good, 0)
        for seed in SEEDS
    ]


def measure(run: Run, folder: Path) -> list[Row]:
    columns = ("step", "loss", "gradient_norm")
    return [{name: line[name] for name in columns} for line in plots.metrics(folder / "train")]


def figure(rows: list[Row]) -> Figure:
    drawn, axes = plots.panels(2)
    for ax, column, label in zip(
        axes, ("loss", "gradient_norm"), ("training loss", "gradient norm"), strict=True
    ):
        for (model, exponent), cell in plots.groups(rows, "model", "rate_log2").items():
            for number, one in enumerate(plots.groups(cell, "run").values()):
                ax.plot(
                    [row["step"] for row in one],
                    [row[column] for row in one],
                    ":" if exponent == 0 else "-",
                    color=plots.COLOURS[model],
                    lw=1.1,
                    label=f"{model}, rate 2^{exponent}" if number == 0 else None,
                )
        ax.set(xlabel="step", ylabel=label, yscale="log")
    axes[0].legend(frameon=False, fontsize=8.5)
    return drawn


def report(rows: list[Row]) -> str:
    found = plots.groups(rows, "model", "rate_log2")
    late = {key: _second_half(cell) for key, cell in found.items()}
    lines = []
    for (model, exponent), cell in late.items():
        norms = [row["gradient_norm"] for row in cell]
        lines.append(
            {
                "model": model,
                "rate": f"2^{exponent}",
                "mean loss": f"{_mean(cell, 'loss'):.3f}",
                "highest loss": f"{max(row['loss'] for row in cell):.3f}",
                "mean gradient norm": f"{plots.mean(norms):.3g}",
                "largest": f"{max(norms):.3g}",
            }
        )
    seeds = len({row["seed"] for row in rows})
    return f"""In the second half of training, seeds: {seeds}.

{plots.table(lines)}

{_verdict(found, late)}"""


def _verdict(found: dict, late: dict) -> str:
    """The paper's findings: smooth or diverging at rate 1, and the floor of the gradient norm."""
    texts = []
    for model, smooth in (("multiscreen", True), ("transformer", False)):
        cell = found.get((model, 0))
        if not cell:
            continue
        first = max(row["loss"] for row in cell if row["step"] == cell[0]["step"])
        highest = max(row["loss"] for row in late[model, 0])
        agrees = "as" if (highest < first) == smooth else "unlike"
        texts.append(
            f"At rate 1 {model.capitalize()} is at {first:.2f} after {cell[0]['step']} steps and "
            f"at most at {highest:.2f} in the second half: "
            f"{'smooth' if highest < first else 'diverged'}, {agrees} in the paper."
        )
    norms = {m: _mean(cell, "gradient_norm") for (m, exponent), cell in late.items() if exponent}
    if len(norms) == 2:
        ours, other = norms["multiscreen"], norms["transformer"]
        nothing = "almost nothing, as in the paper" if ours < 0.01 else "not almost nothing"
        texts.append(
            f"At the good rates Multiscreen's gradient norm is {ours / other:.2g} times the "
            f"Transformer's: {nothing}."
        )
    return " ".join(texts)


def _second_half(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["step"] > max(r["step"] for r in rows) / 2]


def _mean(rows: list[Row], column: str) -> float:
    return plots.mean(row[column] for row in rows)
