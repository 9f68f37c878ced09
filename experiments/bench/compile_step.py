"""Compiles whole training steps of the log-linear 800M models for TPU slices that are not there.

    python -m experiments.bench.compile_step
    python -m experiments.bench.compile_step --topologies v5e:16x16 --models log-linear-gdn-800m

Model, loss, gradient and AdamW of `multiscreen_jax.train`, bfloat16 activations, parameters and
optimizer state divided over all chips (fsdp) and one sequence on each. The table has the memory of
one chip, which the compiler must fit into the chip's, and the kernels that the step calls.
"""

import sys

from experiments.aot.chips import parse_topology
from experiments.aot.flops import count
from experiments.aot.program import (
    Program,
    bytes_of_a_chip,
    compile_step,
    trace_step,
)
from experiments.bench.report import RESULTS, command, machine_facts, write_csv
from experiments.configs import _paper
from multiscreen_jax.sharding import make_mesh
from multiscreen_jax.train import OptimConfig, options, override

SLICES = {"v5e:16x16": "v5e-256", "v5p:4x4x4": "v5p-128"}
MODELS = ("log-linear-mamba2-800m", "log-linear-gdn-800m")


def step_row(name: str, topology: str, length: int) -> dict:
    """One row of the table."""
    where = parse_topology(topology)
    config = override(
        _paper.experiment(name, OptimConfig(learning_rate=1e-3)),
        data={"sequence_length": length, "batch_size": where.chips},
    )
    mesh = make_mesh(data=1, fsdp=where.chips, devices=where.devices())
    trace = trace_step(config, mesh)
    program = compile_step(trace, mesh)
    if not isinstance(program, Program):
        raise ValueError(f"{name} does not fit on {topology}: {program.message}")
    return {
        "model": name,
        "slice": SLICES.get(topology, topology),
        "chips": where.chips,
        "T": length,
        "implementation": " ".join(sorted(set.union(*trace.implementations.values()))),
        "kernels": " ".join(sorted(count(trace.traced.jaxpr).kernels)),
        "state GiB": round(bytes_of_a_chip(trace.state) / 2**30, 2),
        "temporaries GiB": round(program.memory.temporaries / 2**30, 2),
        "compile s": round(program.seconds),
    }


def main(
    models: tuple[str, ...] = MODELS,
    topologies: tuple[str, ...] = tuple(SLICES),
    length: int = 16384,
    name: str = "tpu_steps",
) -> None:
    """Compile, print and write `results/NAME.csv`.

    Args:
        models: registered names.
        topologies: slices as the TPU compiler names them.
        length: tokens of a sequence.
        name: of the file.
    """
    rows = []
    for topology in topologies:
        for model in models:
            rows.append(step_row(model, topology, length))
            print(*rows[-1].values(), sep="  ", flush=True)
            header = [f"command: {command()}", *machine_facts()]
            write_csv(RESULTS / f"{name}.csv", rows, header)


if __name__ == "__main__":
    sys.exit(options.call(main))
