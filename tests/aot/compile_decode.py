"""Compiles the decode kernels for accelerators that are not attached; prints what they need, and
fails if a register is spilled.

python -m tests.aot.compile_decode v5e          (v5e, v5p, v6e)
python -m tests.aot.compile_decode sm_90        (sm_80, sm_90)
"""

import sys

import jax
import jax.numpy as jnp

from experiments.bench import tpu_compiler  # first, see there
from experiments.bench.gpu_compiler import compile_program
from pallas_kernels.screening import screening_decode
from pallas_kernels.screening.decode_gpu import screening_decode_gpu
from pallas_kernels.screening.summaries import BlockSummaries

SLOTS = 1 << 20
# (queries, dtype of the cache, value dimension, with summaries)
CASES = (
    (1, jnp.bfloat16, 64, False),
    (1, jnp.bfloat16, 64, True),
    (1, jnp.float32, 64, True),
    (2, jnp.float32, 64, True),
    (3, jnp.float32, 32, True),
    (4, jnp.bfloat16, 64, True),
)


def arguments(sharding, queries, dtype, value_dim, with_summaries, batch=2, heads=8, key_dim=16):
    def shape(dtype, *dims):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)

    summaries = None
    if with_summaries:
        box = shape(dtype, batch, SLOTS // 32, key_dim)
        summaries = BlockSummaries(box, box, shape(jnp.float32, batch, SLOTS // 32, 1))
    return (
        shape(dtype, batch, queries, heads, key_dim),
        shape(dtype, batch, SLOTS, key_dim),
        shape(dtype, batch, SLOTS, value_dim),
        shape(jnp.int32, batch, queries),
        *(shape(jnp.int32, batch) for _ in range(2)),
        *(shape(jnp.int32, heads) for _ in range(2)),
        *(shape(jnp.float32, heads) for _ in range(2)),
        summaries,
    )


def decode_on_tpu(*args):
    *args, summaries = args
    return screening_decode(*args, summaries=summaries, implementation="pallas_tpu")


def decode_on_gpu(*args):
    *args, summaries = args
    return screening_decode_gpu(*args, summaries=summaries)


def compile_tpu(chip, case):
    """The kernel's report, and the program's memory."""
    leaves, tree = jax.tree.flatten(arguments(None, *case))

    def run(*leaves):
        return decode_on_tpu(*jax.tree.unflatten(tree, leaves))

    (kernel,), memory = tpu_compiler.compile_for(chip, run, *leaves)
    return kernel, memory


def main(target: str) -> None:
    for case in CASES:
        queries, dtype, value_dim, with_summaries = case
        if target.startswith("sm_"):
            # Fails if XLA's assembler spills a register.
            program = compile_program(
                decode_on_gpu, arguments(None, *case), int(target[3:]), refuse_spills=True
            )
            assert any("screening_decode" in kernel.name for kernel in program.kernels)
            cache, temporaries = program.arguments, program.temporaries
        else:
            kernel, memory = compile_tpu(target, case)
            assert kernel.spills == 0
            cache, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        print(
            f"{target} T={queries} {jnp.dtype(dtype).name} V={value_dim} "
            f"summaries={with_summaries} cache_mib {cache / 2**20:.1f} "
            f"temp_mib {temporaries / 2**20:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1])
