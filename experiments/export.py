"""Write a run's weights as one safetensors file, config included.

Examples:

    python -m experiments.export runs/quickstart quickstart.safetensors
    python -m experiments.export runs/quickstart weights.safetensors --source multiscreen/lucidrains

`mj.convert.load_safetensors` reads it back. Names and layout are those of the source.
"""

from experiments.interrupt import end_on_interrupt

if __name__ == "__main__":  # before the imports, which take seconds
    end_on_interrupt()

from dataclasses import dataclass
from typing import Annotated

import tyro

from multiscreen_jax import convert
from multiscreen_jax.train import one_line_errors, options
from multiscreen_jax.train.trained_run import open_run

PROGRAM = "python -m experiments.export"


@dataclass(frozen=True)
class ExportConfig:
    """What to write, and where."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Output folder of a training run (or one checkpoint's folder in it), or a shipped model."""
    output: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The safetensors file; one that is there is replaced."""
    step: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: newest)")
    ] = None
    """Which checkpoint."""
    code: Annotated[
        str | None, tyro.conf.arg(metavar="FILE.py", help_behavior_hint="(default: none)")
    ] = None
    """Python file the run was trained from, which is run; its copy is RUN_DIR/code.py."""
    source: Annotated[
        str | None, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="(default: the model's own)")
    ] = None
    """PyTorch implementation whose names and layout are used: see `mj.convert.sources()`."""


def main() -> None:
    """Reads a checkpoint and writes the file."""
    with one_line_errors():
        config = options.read(ExportConfig, prog=PROGRAM, description=__doc__)
        run = open_run(config.run, config.step, config.code)
        convert.save_safetensors(config.output, run.params, run.model.config, config.source)
        print(f"{run.title} written to {config.output}; its tokenizer: {run.tokenizer.name}")


if __name__ == "__main__":
    main()
