"""Validation loss by learning rate, 2^-14 to 2^0 ("Screening Is Enough", Fig. 4).

The paper trains a Transformer of 45M and a Multiscreen of 28M: the Transformer diverges from 2^-4
on and is best near 1e-3, Multiscreen never diverges. Here: 115 thousand parameters (the Transformer
has 127 thousand), bytes of speeches, 400 steps of 16 x 128, a constant rate after 50 steps of
warm-up.

    python -m experiments.paper run learning_rates

It gave, with three seeds at every second rate: Multiscreen within 10 % of its best (1.604 at 2^-5)
from 2^-7 to 2^-1, and 1.65, 1.87 and 1.93 at rate 1. The Transformer, best at 2^-8 (1.64 to 1.72),
degrades from 2^-7 on, to 5.5, 5.6 and 8.1 at rate 1.
"""

import math
from pathlib import Path

from matplotlib.figure import Figure

from experiments.paper import plots, text_runs
from experiments.paper.study import Row, Run

TITLE = "Learning rates"
EXPONENTS = range(-14, 1)
SEEDS = (0, 1, 2)


def runs(scale: str) -> list[Run]:
    """All rates with seed 0; every second rate with the other seeds."""
    return [
        text_runs.at_rate(scale, model, exponent, seed)
        for seed in SEEDS
        for model in text_runs.SMALL
        for exponent in EXPONENTS[:: 1 if seed == 0 else 2]
    ]


def measure(run: Run, folder: Path) -> list[Row]:
    logged = plots.metrics(folder / "train")
    losses = [line["loss"] for line in logged]
    finite = [x for x in losses if math.isfinite(x)]
    return [
        {
            "validation_loss": logged[-1]["validation_loss"],
            "first_loss": losses[0],
            "last_loss": plots.mean(losses[-10:]),
            "highest_loss_after_10_lines": max(x for x in finite[10:]) if len(finite) > 10 else "",
            "largest_gradient_norm": max(line["gradient_norm"] for line in logged),
            "not_finite": len(losses) - len(finite),
        }
    ]


def figure(rows: list[Row]) -> Figure:
    drawn, (ax,) = plots.panels(1, width=6.4)
    for (model,), runs_ in plots.groups(rows, "model").items():
        by_rate = sorted(plots.groups(runs_, "rate_log2").items())
        rates = [2.0**rate for (rate,), _ in by_rate]
        losses = [[row["validation_loss"] for row in cell] for _, cell in by_rate]
        means = [plots.mean(cell) for cell in losses]
        ax.plot(rates, means, color=plots.COLOURS[model], lw=1.8, label=model.capitalize())
        for rate, cell in zip(rates, losses, strict=True):
            ax.plot([rate] * len(cell), cell, "o", ms=3.5, color=plots.COLOURS[model])
    ax.set_xscale("log", base=2)
    ax.set(xlabel="learning rate", ylabel="validation loss (nats per token)")
    ax.legend(frameon=False, fontsize=9)
    return drawn


def report(rows: list[Row]) -> str:
    lines = []
    for (rate,), cell in sorted(plots.groups(rows, "rate_log2").items()):
        losses = {model: [] for model in text_runs.SMALL}
        for row in cell:
            losses[row["model"]].append(row["validation_loss"])
        shown = {
            m.capitalize(): ", ".join(f"{x:.3f}" for x in found) for m, found in losses.items()
        }
        lines.append({"learning rate": f"2^{rate}", **shown})
    return f"""Validation loss, one number per seed:

{plots.table(lines)}

{_verdict(rows)}"""


def _verdict(rows: list[Row]) -> str:
    """What can be said of rate 1, and of the rates that each survives."""
    texts = []
    for (model,), found in plots.groups(rows, "model").items():
        means = {
            rate: plots.mean(row["validation_loss"] for row in cell)
            for (rate,), cell in plots.groups(found, "rate_log2").items()
        }
        best = min(means, key=lambda rate: means[rate] if math.isfinite(means[rate]) else math.inf)
        good = [rate for rate in means if means[rate] <= 1.1 * means[best]]
        at_one = [row for row in found if row["rate_log2"] == 0]
        ends = ", ".join(f"{row['first_loss']:.2f} to {row['last_loss']:.2f}" for row in at_one)
        texts.append(
            f"{model.capitalize()} is best at 2^{best} ({means[best]:.3f}) and within 10 % of that "
            f"from 2^{min(good, default=best)} to 2^{max(good, default=best)}"
            + (
                f"; at rate 1 its training loss goes, from the first step logged, from {ends}"
                if ends
                else ""
            )
            + (", with steps that are not finite." if any(r["not_finite"] for r in at_one) else ".")
        )
    return " ".join(texts)
