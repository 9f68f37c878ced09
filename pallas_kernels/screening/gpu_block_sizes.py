"""Block sizes of the GPU kernels: a table of configurations that were compiled and checked.

Sizes measured on a GPU, see `block_tables`, come before it.

`python -m experiments.bench.compile_gpu` compiles all of them, for sm_80 and sm_90: with and
without documents, at a length that is a multiple of the blocks and at one that is not. None spills
a register. Sizes for which every block tried does are refused here, before the compiler.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.screening.block_tables import configuration, table

KEY_DIMS = (8, 16, 32, 64, 128)
VALUE_DIMS = (32, 64, 128)
DTYPES = ("bfloat16", "float32")
MIN_COMPUTE_CAPABILITY = 80


class Block(NamedTuple):
    """A tile of queries x keys, and how the compiler is to spread and pipeline it."""

    queries: int
    keys: int
    warps: int
    stages: int


class BlockSizes(NamedTuple):
    """Of the forward, of the gradient of q, and of the gradients of k and v."""

    forward: Block
    queries: Block
    keys: Block


_B64X32 = Block(64, 32, warps=4, stages=2)
_B64X32_UNSTAGED = Block(64, 32, warps=4, stages=1)
_B32X64 = Block(32, 64, warps=4, stages=2)
_B32X32 = Block(32, 32, warps=4, stages=2)
_B32X32_UNSTAGED = Block(32, 32, warps=4, stages=1)
_B32X16 = Block(32, 16, warps=4, stages=1)
_B16X32 = Block(16, 32, warps=4, stages=1)
_B32X16_SPREAD = Block(32, 16, warps=8, stages=1)
_B16X32_SPREAD = Block(16, 32, warps=8, stages=1)

# Float32 needs more registers: each of its products is three, of operands split in two parts.
_USUAL = {
    "bfloat16": BlockSizes(_B64X32, _B64X32, _B64X32),
    "float32": BlockSizes(_B32X32, _B32X32, _B32X32),
}
# (dtype, K, V); None where every block tried spills registers.
_UNUSUAL = {
    ("bfloat16", 16, 128): BlockSizes(_B64X32, _B64X32, _B32X64),
    ("bfloat16", 32, 128): BlockSizes(_B64X32, _B64X32, _B32X64),
    ("bfloat16", 64, 32): BlockSizes(_B64X32, _B64X32, _B32X64),
    ("bfloat16", 128, 32): BlockSizes(_B64X32_UNSTAGED, _B64X32_UNSTAGED, _B32X32_UNSTAGED),
    ("bfloat16", 128, 64): BlockSizes(_B64X32, _B32X32_UNSTAGED, _B64X32),
    ("bfloat16", 128, 128): BlockSizes(_B64X32, _B32X32, _B64X32),
    ("float32", 16, 64): BlockSizes(_B32X32, _B32X16, _B32X32),
    ("float32", 16, 128): None,
    ("float32", 32, 32): BlockSizes(_B32X32, _B32X32, _B16X32),
    ("float32", 32, 64): BlockSizes(_B32X32, _B32X16, _B32X32),
    ("float32", 32, 128): BlockSizes(_B32X32, _B16X32_SPREAD, _B32X16),
    ("float32", 64, 32): BlockSizes(_B32X32, _B32X32, _B16X32),
    ("float32", 64, 64): BlockSizes(_B32X32, _B32X32, _B32X16),
    ("float32", 64, 128): BlockSizes(_B32X32, _B16X32_SPREAD, _B32X16_SPREAD),
    ("float32", 128, 32): BlockSizes(_B32X16, _B16X32_SPREAD, _B32X16),
    ("float32", 128, 64): BlockSizes(_B32X16, _B16X32_SPREAD, _B32X16),
    ("float32", 128, 128): BlockSizes(_B32X16_SPREAD, _B16X32_SPREAD, _B32X16_SPREAD),
}


def block_sizes(
    compute_capability: int | None, dtype: jax.typing.DTypeLike, key_dim: int, value_dim: int
) -> BlockSizes:
    """Block sizes of the three kernels.

    Args:
        compute_capability: 80 for 8.0; None if not known, which is taken for a supported one.
        dtype: of q, k and v.
        key_dim, value_dim: K and V.

    Raises:
        NotImplementedError: if there is no checked configuration, with the reason.
    """
    dtype = jnp.dtype(dtype).name
    if compute_capability is not None and compute_capability < MIN_COMPUTE_CAPABILITY:
        raise NotImplementedError(
            f"compute capability {compute_capability}, needs at least {MIN_COMPUTE_CAPABILITY}"
        )
    for name, value, allowed in (
        ("dtype", dtype, DTYPES),
        ("K", key_dim, KEY_DIMS),
        ("V", value_dim, VALUE_DIMS),
    ):
        if value not in allowed:
            raise NotImplementedError(
                f"{name} is {value}, must be among {', '.join(map(str, allowed))}"
            )
    chip = "gpu" if compute_capability is None else f"sm_{compute_capability}"
    measured = table(chip).get(configuration(dtype, key_dim, value_dim))
    if measured is not None:
        return BlockSizes(**{kernel: Block(**block) for kernel, block in measured.items()})
    # K = 8 is computed as 16, the least that the tensor cores' products take.
    sizes = _UNUSUAL.get((dtype, max(key_dim, 16), value_dim), _USUAL[dtype])
    if sizes is None:
        raise NotImplementedError(
            f"{dtype} with K = {key_dim}, V = {value_dim}: the kernels would spill registers"
        )
    return sizes
