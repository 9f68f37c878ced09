"""Compiles one decoded token of the log-linear ops for a TPU, and counts the bytes it moves.

    python -m experiments.bench.compile_tpu_decode

By the kernel and by XLA's form; bytes as the compiler counts them, and temporaries, in multiples of
the state's: 2 is to read and to write it once.
"""

import sys

import jax

from experiments.bench import tpu_compiler  # first, see there
from experiments.bench.linear_models import LEVELS, MODELS, decoded_token, state_bytes
from experiments.bench.report import RESULTS, command, machine_facts, write_csv
from multiscreen_jax.train import options


def row_of(chip: str, name: str, batch: int, implementation: str) -> dict:
    decode, shapes = decoded_token(MODELS[name], batch, implementation)
    with tpu_compiler.target(chip) as where:
        given = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for x in shapes]
        compiled = jax.jit(decode, donate_argnums=6).lower(*given).compile()
    state = state_bytes(MODELS[name], batch)
    moved = compiled.cost_analysis()["bytes accessed"]
    if implementation == "pallas_tpu":  # what a kernel moves is not counted
        moved += 2 * state
    return {
        "chip": chip,
        "model": name,
        "B": batch,
        "levels": LEVELS,
        "implementation": implementation,
        "bytes / state": round(moved / state, 2),
        "temporaries / state": round(compiled.memory_analysis().temp_size_in_bytes / state, 2),
    }


def main(
    chips: tuple[str, ...] = ("v5e", "v5p", "v6e"),
    models: tuple[str, ...] = ("Mamba-2 800M", "GDN 800M"),
    batch: int = 8,
    name: str = "tpu_linear_decode",
) -> None:
    """Compile, print and write `results/NAME.csv`.

    Args:
        chips: among v4, v5e, v5p, v6e, tpu7x.
        models: sizes, by the names of `compile_tpu_linear`.
        batch: sequences.
        name: of the file.
    """
    rows = []
    for chip in chips:
        for model in models:
            for implementation in ("pallas_tpu", "chunked"):
                rows.append(row_of(chip, model, batch, implementation))
                print(*rows[-1].values(), sep="  ", flush=True)
    header = [f"command: {command()}", *machine_facts()]
    write_csv(RESULTS / f"{name}.csv", rows, header)


if __name__ == "__main__":
    sys.exit(options.call(main))
