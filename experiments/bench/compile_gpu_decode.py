"""Compiles one decoded token of the log-linear ops for GPUs that are not there.

    pip install --no-deps jax-cuda13-plugin==X jax-cuda13-pjrt==X      X: the version of jax
    JAX_PLATFORMS=cpu python -m experiments.bench.compile_gpu_decode

By the kernel and by XLA's form. Temporaries in multiples of the state's bytes: 0 is in place. The
kernel reads and writes what holds something, about half of the levels; XLA all of them.
"""

import sys
from typing import Any

from experiments.bench.gpu_compiler import GPUS, compile_program, missing
from experiments.bench.linear_models import LEVELS, MODELS, decoded_token, state_bytes
from experiments.bench.report import RESULTS, command, machine_facts, write_csv
from multiscreen_jax.train import options

NAME = "log_linear_step"


def row_of(arch: int, name: str, batch: int, implementation: str) -> dict[str, Any]:
    function, shapes = decoded_token(MODELS[name], batch, implementation)
    program = compile_program(function, shapes, arch)
    ours = [kernel for kernel in program.kernels if NAME in kernel.name]
    return {
        "arch": f"sm_{arch}",
        "model": name,
        "B": batch,
        "levels": LEVELS,
        "implementation": implementation,
        "kernels": len(program.kernels),
        "registers": max((kernel.registers for kernel in ours), default=""),
        "spill bytes": sum(kernel.spills for kernel in program.kernels),
        "blocks per core": min((kernel.blocks_per_core(arch) for kernel in ours), default=""),
        "temporaries / state": round(program.temporaries / state_bytes(MODELS[name], batch), 2),
    }


def main(batch: int = 8, name: str = "gpu_linear_decode") -> None:
    """Compile, print and write `results/NAME.csv`.

    Args:
        batch: sequences.
        name: of the file.
    """
    if reason := missing():
        raise SystemExit(reason)
    rows = []
    for arch in GPUS:
        for model in MODELS:
            for implementation in ("pallas_gpu", "chunked"):
                rows.append(row_of(arch, model, batch, implementation))
                print(*rows[-1].values(), sep="  ", flush=True)
    write_csv(RESULTS / f"{name}.csv", rows, [f"command: {command()}", *machine_facts()])


if __name__ == "__main__":
    sys.exit(options.call(main))
