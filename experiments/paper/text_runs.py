"""Training runs on text that several studies read; each leaves its model in {run}/train."""

import dataclasses
from collections.abc import Iterator

from experiments.paper.study import Run

SMALL = {"multiscreen": "text_small", "transformer": "text_small_transformer"}
PAPER = {"multiscreen": "multiscreen_28m", "transformer": "transformer_45m"}

# The paper's two stages, and the tokens of a row in each.
STAGES = {"base": 2**12, "continued": 2**15}
FACTORS = (1, 2, 4, 8, 16, 32, 64)


def at_rate(scale: str, model: str, exponent: int, seed: int) -> Run:
    """A model at a learning rate of 2^exponent; what is not finite is logged and goes on."""
    config = (SMALL if scale == "small" else PAPER)[model]
    command = (
        f"experiments.train {config} --train.output-dir {{run}}/train --train.seed {seed} "
        f"--data.seed {seed} --optim.learning-rate {2.0**exponent} --train.on-nonfinite continue"
    )
    name = f"text-{model}-rate2^{exponent}-seed{seed}"
    return Run(name, (command,), seed, {"model": model, "rate_log2": exponent})


def base(config: str, seed: int) -> Run:
    """A model of the paper as its config says; 28M at 2^-4 is one of the sweep."""
    columns = {"model": config.partition("_")[0], "size": config.partition("_")[2]}
    if config == PAPER["multiscreen"]:
        return dataclasses.replace(at_rate("paper", "multiscreen", -4, seed), columns=columns)
    command = (
        f"experiments.train {config} --train.output-dir {{run}}/train --train.seed {seed} "
        f"--data.seed {seed}"
    )
    return Run(f"text-{config}-seed{seed}", (command,), seed, columns)


def continued(config: str, seed: int) -> Run:
    """2^27 tokens more, 32 batches, in longer rows: for the Transformer with RoPE's factor 8."""
    first = base(config, seed)
    length = STAGES["continued"]
    factor = " --model.rope-factor 8" if first.columns["model"] == "transformer" else ""
    command = (
        f"experiments.train {config} --train.output-dir {{run}}/train --train.seed {seed} "
        f"--data.seed {seed} --train.init-from {{runs}}/{first.name}/train --train.steps 32 "
        f"--data.sequence-length {length} --data.batch-size {2**22 // length}{factor}"
    )
    name = f"text-{config}-continued-seed{seed}"
    return Run(name, (command,), seed, first.columns, needs=(first,))


def asked(config: str, seed: int) -> Iterator[tuple[str, str, str]]:
    """STAGE-RULE, the model's folder and the option of all that the paper asks a model with."""
    for stage, one in (("base", base(config, seed)), ("continued", continued(config, seed))):
        rules = {"learned": "", "rule": "--infinite-windows"}
        if one.columns["model"] == "transformer":
            factors = FACTORS if stage == "base" else FACTORS[FACTORS.index(8) :]
            rules = {f"factor{n}": f"--rope-factor {n}" for n in factors}
        for rule, option in rules.items():
            yield f"{stage}-{rule}", f"{{runs}}/{one.name}/train", option
