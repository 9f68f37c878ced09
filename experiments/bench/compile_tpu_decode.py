"""Compiles one decoded token of the log-linear ops for a TPU, and counts the bytes it moves.

    python -m experiments.bench.compile_tpu_decode

By the kernel and by XLA's form; bytes as the compiler counts them, and temporaries, in multiples of
the state's: 2 is to read and to write it once.
"""

import sys

import jax
import jax.numpy as jnp
import tyro

from experiments.bench import tpu_compiler  # first, see there
from experiments.bench.compile_tpu_linear import MODELS
from experiments.bench.report import RESULTS, command, machine_facts, write_csv
from pallas_kernels import log_linear_gated_delta_rule, log_linear_ssd
from pallas_kernels.log_linear import LogLinearState

LEVELS = 15  # of the released models


def row_of(chip: str, name: str, batch: int, implementation: str) -> dict:
    groups, heads, key_dim, value_dim, delta = MODELS[name]
    f32, bf16 = jnp.float32, jnp.bfloat16

    def decode(q, k, v, g, beta, scales, levels, length):
        how = {
            "initial_state": LogLinearState(levels, length), "return_state": True,
            "implementation": implementation,
        }  # fmt: skip
        if delta:
            y, state = log_linear_gated_delta_rule(q, k, v, g, beta, scales, **how)
        else:
            y, state = log_linear_ssd(q, k, v, g, scales, **how)
        return y, state.levels

    shapes = [
        ((1, groups, key_dim), bf16), ((1, groups, key_dim), bf16), ((1, heads, value_dim), bf16),
        ((1, heads), f32), ((1, heads), f32), ((1, heads, LEVELS), f32),
        ((heads, LEVELS, key_dim, value_dim), f32), ((), jnp.int32),
    ]  # fmt: skip
    with tpu_compiler.target(chip) as where:
        given = [jax.ShapeDtypeStruct((batch, *s), d, sharding=where) for s, d in shapes]
        compiled = jax.jit(decode, donate_argnums=6).lower(*given).compile()
    state = batch * heads * LEVELS * key_dim * value_dim * 4
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
    sys.exit(tyro.cli(main))
