"""Training runs on text that several studies read."""

from experiments.paper.study import Run

SMALL = {"multiscreen": "text_small", "transformer": "text_small_transformer"}
PAPER = {"multiscreen": "multiscreen_28m", "transformer": "transformer_45m"}


def at_rate(scale: str, model: str, exponent: int, seed: int) -> Run:
    """A model at a learning rate of 2^exponent; what is not finite is logged and goes on."""
    config = (SMALL if scale == "small" else PAPER)[model]
    command = (
        f"experiments.train {config} --train.output-dir {{run}}/train --train.seed {seed} "
        f"--data.seed {seed} --optim.learning-rate {2.0**exponent} --train.on-nonfinite continue"
    )
    name = f"text-{model}-rate2^{exponent}-seed{seed}"
    return Run(name, (command,), seed, {"model": model, "rate_log2": exponent})
