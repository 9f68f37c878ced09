"""Validation loss by number of parameters ("Screening Is Enough", Fig. 3).

The paper trains Multiscreens of 4M to 4B and Transformers of 8M to 353M on 2^38 tokens: the same
loss with about 30 % fewer parameters. Here: four sizes of each, bytes of speeches, 600 steps of 16
x 128 bytes, each model at one learning rate for all sizes: 2^-4 for Multiscreen and 2^-8 for the
Transformer, good ones of the sweep above (400 steps at 115 and 127 thousand parameters).

    python -m experiments.paper run scaling

It gave, with one seed: Multiscreen below the Transformer of as many parameters (interpolated) at
115 and 270 thousand, by 0.05 and 0.01 nats per byte, and above it at 623 thousand, by 0.05.
"""

import itertools
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.paper import plots, text_runs
from experiments.paper.loss_curves import GOOD
from experiments.paper.study import Row, Run
from multiscreen_jax.json_files import read_object
from multiscreen_jax.train import config_json

TITLE = "Scaling"
# layers, heads, model_dim
_SIZES = {
    "multiscreen": ((2, 3, 40), (3, 4, 64), (4, 5, 96), (6, 6, 128)),
    "transformer": ((2, 2, 48), (3, 4, 56), (4, 4, 80), (6, 4, 104)),
}
_PAPER = {
    "multiscreen": ("4m", "28m", "286m", "1_3b", "4b"),
    "transformer": ("8m", "18m", "45m", "124m", "353m"),
}


def runs(scale: str) -> list[Run]:
    if scale == "paper":
        configs = [f"{model}_{size}" for model in _PAPER for size in _PAPER[model]]
        return [text_runs.base(config, 0) for config in configs]
    return [_run(model, *size) for model in _SIZES for size in _SIZES[model]]


def _options(model: str, layers: int, heads: int, dim: int) -> str:
    rate = 2.0 ** GOOD["small"][model]
    options = {"num-layers": layers, "num-heads": heads, "model-dim": dim}
    if model == "transformer":
        # Sizes that a config derives from others are fields of it, which an option leaves alone.
        options |= {
            "num-kv-heads": heads,
            "head-dim": dim // heads,
            "feed-forward-dim": 8 * dim // 3,
        }
    model_options = " ".join(f"--model.{name} {value}" for name, value in options.items())
    return (
        f"--train.steps 600 --train.evaluate-every 600 --optim.learning-rate {rate} {model_options}"
    )


def _run(model: str, layers: int, heads: int, dim: int) -> Run:
    size = f"{layers}x{dim}"
    command = (
        f"experiments.train {text_runs.SMALL[model]} --train.output-dir {{run}}/train "
        f"{_options(model, layers, heads, dim)}"
    )
    return Run(f"scaling-{model}-{size}", (command,), 0, {"model": model, "size": size})


def measure(run: Run, folder: Path) -> list[Row]:
    config = config_json.from_dict(read_object(folder / "train" / "config.json"))
    last = plots.metrics(folder / "train")[-1]
    found = {"parameters": config.model.parameter_count()}
    return [{**found, "validation_loss": last["validation_loss"], "last_loss": last["loss"]}]


def figure(rows: list[Row]) -> Figure:
    drawn, (ax,) = plots.panels(1, width=5.6)
    for (model,), one in plots.groups(rows, "model").items():
        one = sorted(one, key=lambda row: row["parameters"])
        ax.plot(
            [row["parameters"] for row in one],
            [row["validation_loss"] for row in one],
            marker="o",
            color=plots.COLOURS[model],
            label=model.capitalize(),
        )
    ax.set(xlabel="parameters", ylabel="validation loss (nats per token)", xscale="log")
    ax.legend(frameon=False, fontsize=9)
    return drawn


def report(rows: list[Row]) -> str:
    lines = [
        {
            "": f"{row['model'].capitalize()} {row['size']}",
            "parameters": f"{row['parameters']:,}",
            "validation loss": f"{row['validation_loss']:.3f}",
        }
        for row in sorted(rows, key=lambda row: (row["model"], row["parameters"]))
    ]
    return f"""One seed; a small size is layers x model dimension.

{plots.table(lines)}

{_verdict(rows)}"""


def _verdict(rows: list[Row]) -> str:
    """Who is below whom at the same number of parameters, and whose loss does not fall."""
    found = {
        model: sorted(cells, key=lambda row: row["parameters"])
        for (model,), cells in plots.groups(rows, "model").items()
    }
    if len(found) < 2:
        return ""
    theirs = found["transformer"]
    inside = [
        row
        for row in found["multiscreen"]
        if theirs[0]["parameters"] <= row["parameters"] <= theirs[-1]["parameters"]
    ]
    at = [math.log(row["parameters"]) for row in theirs]
    losses = [row["validation_loss"] for row in theirs]
    below = sum(
        row["validation_loss"] < np.interp(math.log(row["parameters"]), at, losses)
        for row in inside
    )
    text = (
        f"Multiscreen is below the Transformer of as many parameters (interpolated) at {below} of "
        f"{len(inside)} sizes; in the paper, at all."
    )
    for model, cells in found.items():
        for smaller, larger in itertools.pairwise(cells):
            if larger["validation_loss"] >= smaller["validation_loss"]:
                text += (
                    f" {model.capitalize()} {larger['size']} is no better than {smaller['size']}, "
                    "at one rate for all sizes: unlike the paper."
                )
    return text
