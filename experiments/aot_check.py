"""Checks a training step for a pod that is not there: does it fit, and what would it cost?

    python -m experiments.aot_check --config multiscreen_4b --topology v5p:4x8x8 --mesh fsdp=256
    python -m experiments.aot_check --config 28m --topology v5e:4x4 --mesh fsdp=8,model=2

Compiles the very step that `experiments.train` would run, for the very slice, with the compiler of
the chips and none of the chips (TPUs: pip install -e '.[aot]'). Prints memory of a chip,
FLOPs, collectives and the least time of a step; where it does not fit, what to change.
"""

import sys
from pathlib import Path

from experiments.aot import (
    libtpu,  # noqa: F401  before anything loads the compiler
    report,
)
from experiments.aot.chips import Topology, parse_topology
from experiments.aot.findings import check, check_mesh, check_sizes
from experiments.aot.program import Program
from experiments.bench.report import command, machine_facts
from experiments.configs import _paper
from multiscreen_jax.fields import unknown_name
from multiscreen_jax.models.registry import preset_names
from multiscreen_jax.sharding import WITH_EXPERTS
from multiscreen_jax.train import (
    ExperimentConfig,
    one_line_errors,
    options,
    override,
    transformer_recipe,
)
from multiscreen_jax.train.command_line import config_names, named_config

_PACKAGE = "experiments.configs"


def find_config(name: str) -> ExperimentConfig:
    """A config of `experiments.configs` by its name (4b: multiscreen_4b), or a registered model
    (log-linear-mamba2-800m) with the paper's data.

    Raises:
      ValueError: neither knows the name; near matches are named.
    """
    known = config_names(_PACKAGE)
    module = name.replace("-", "_").replace(".", "_")
    for candidate in (module, f"multiscreen_{module}"):
        if candidate in known:
            return named_config(_PACKAGE, candidate)
    if name in preset_names():
        return _paper.experiment(name, transformer_recipe(1e-3))
    short = [x.removeprefix("multiscreen_") for x in known if x.startswith("multiscreen_")]
    registered = [x for x in preset_names() if x.replace("-", "_").replace(".", "_") not in known]
    raise unknown_name("config", name, [*known, *short, *registered])


def parse_mesh(text: str) -> dict[str, int]:
    """{"fsdp": 64, "model": 4} of "fsdp=64,model=4".

    Raises:
      ValueError: an axis that no mesh has, twice the same, or a size that is no number above 0.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in WITH_EXPERTS:
            raise unknown_name("mesh axis", axis, WITH_EXPERTS)
        if axis in sizes or not size.isdecimal() or int(size) < 1:
            raise ValueError(f"mesh is {text!r}; allowed: as fsdp=64,model=4, each axis once")
        sizes[axis] = int(size)
    return sizes


def requested(
    config: str,
    topology: str,
    mesh: str = "",
    length: int | None = None,
    batch_tokens: int | None = None,
    accumulate: int | None = None,
    dtype: str | None = None,
    remat: str | None = None,
) -> tuple[ExperimentConfig, Topology, dict[str, int]]:
    """The experiment, the slice and the mesh of `main`'s options of these names.

    Raises:
      ValueError: for an option that is refused; says what is allowed.
    """
    where, experiment = parse_topology(topology), find_config(config)
    sizes = parse_mesh(mesh) if mesh else {"fsdp": where.chips}
    check_mesh(sizes, where)
    data = experiment.data
    length = length or data.sequence_length
    tokens = batch_tokens or data.batch_size * data.sequence_length
    if tokens % length:
        raise ValueError(f"batch-tokens is {tokens}; allowed: a multiple of length, {length}")
    model = {"dtype": dtype, "remat": remat}
    experiment = override(
        experiment,
        model={name: value for name, value in model.items() if value is not None},
        data={"sequence_length": length, "batch_size": tokens // length},
        train={"accumulate": accumulate or experiment.train.accumulate},
    )
    check_sizes(experiment, sizes, where)
    return experiment, where, sizes


def main(
    config: str,
    topology: str,
    mesh: str = "",
    length: int | None = None,
    batch_tokens: int | None = None,
    accumulate: int | None = None,
    dtype: str | None = None,
    remat: str | None = None,
    csv: Path | None = None,
    hlo: Path | None = None,
) -> None:
    """Compile the step and print the report.

    Args:
        config: a named experiment (multiscreen_4b, or 4b), or a registered model.
        topology: chip and shape: v5e:16x16, v5p:4x8x8, v6e:16x16, h100:1x8 (nodes x GPUs).
        mesh: sizes of data, fsdp, seq and model, as fsdp=64,model=4. Nothing: all chips in fsdp.
        length: tokens of a sequence; the config's if not given.
        batch_tokens: tokens of a step, over all chips; the config's if not given.
        accumulate: parts that a batch is divided into.
        dtype: of the activations.
        remat: what the backward pass keeps: none, dots, mixer, full.
        csv: a table to add a row to.
        hlo: a file for the compiled program's text.
    """
    with one_line_errors():
        experiment, where, sizes = requested(
            config, topology, mesh, length, batch_tokens, accumulate, dtype, remat
        )
        facts = machine_facts()
        found = check(experiment, where, sizes, lambda line: print(line, flush=True))
    print(report.text(found))
    if hlo is not None and isinstance(found.program, Program):
        hlo.write_text(found.program.text, encoding="utf-8")
    if csv is not None:
        report.append(csv, report.row(config, found), command(), facts)
        print(f"\nadded to {csv}")
    sys.exit(0 if found.fits else 1)


if __name__ == "__main__":
    options.call(main, prog="python -m experiments.aot_check")
