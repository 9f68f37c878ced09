"""Which block sizes the kernels of screening use, and what memory they need."""

from typing import NamedTuple

import jax.numpy as jnp

from pallas_kernels.common.tpu import tpu_chip
from pallas_kernels.screening.block_tables import configuration, path_of, table

_LANES = 128
_SUBLANES = 8
FEATURES = 64  # of q or k, that registers hold together with what is made of them
# What a kernel may use of the vector memory of every chip without asking for more.
VMEM_LIMIT = 16 * 2**20


class TpuBlock(NamedTuple):
    """Block sizes of one TPU kernel, powers of two."""

    rows: int  # tokens of the side that stays
    columns: int  # tokens of the side that is streamed
    strip: int  # rows that are judged at a time
    part_rows: int = 128  # of a part of a tile on the window's edge
    part_columns: int = 128
    staged: bool = False  # whether the products of the backward are scheduled apart
    rolled: bool = False  # whether strips are a loop at run time, in which nothing overlaps

    def within(self, tokens: int) -> "TpuBlock":
        """The same with no extent above that of a short sequence."""
        names = ("rows", "columns", "strip", "part_rows", "part_columns")
        return self._replace(**{name: min(getattr(self, name), tokens) for name in names})


class TpuBlocks(NamedTuple):
    """Block sizes of the three TPU kernels."""

    forward: TpuBlock
    queries: TpuBlock
    keys: TpuBlock

    @property
    def multiple(self) -> int:
        """What the length is padded to a multiple of."""
        return max(max(block.rows, block.columns) for block in self)


def tpu_blocks(length: int, key_dim: int, value_dim: int, exact: bool) -> TpuBlocks:
    """The block sizes for a call: from the chip's table, or usual ones for a chip without a table.

    The tables hold sizes with which no kernel spills a register. A product ends with a wait of a
    hundred cycles, so tiles are as large as registers and short sequences allow.

    Args:
        exact: float32 products. Their kernel for dq and dwindow keeps few rows, since dwindow is a
            difference of angles counted from the first of them.

    Raises:
        NotImplementedError: with the reason, if the chip's table has no such configuration, or if
            its blocks do not fit the memory.
    """
    chip = tpu_chip()
    name = configuration(jnp.float32 if exact else jnp.bfloat16, key_dim, value_dim)
    sizes = table(chip)
    if name in sizes:
        blocks = TpuBlocks(**{kernel: TpuBlock(**block) for kernel, block in sizes[name].items()})
    elif path_of(chip).exists():
        raise NotImplementedError(
            f"{name} on {chip}: no block sizes are known that spill no registers"
        )
    else:
        blocks = usual_blocks(exact)
    tokens = _LANES
    while tokens < length:
        tokens *= 2
    blocks = TpuBlocks(*(block.within(tokens) for block in blocks))
    check_memory(blocks, key_dim, value_dim, exact)
    return blocks


def usual_blocks(exact: bool) -> TpuBlocks:
    """What is tried first for a configuration: the sizes of the models' own shapes on TPU v6e."""
    forward = TpuBlock(256, 256, 64) if exact else TpuBlock(1024, 512, 64, 128, 256)
    backward = forward._replace(staged=True)
    queries = backward._replace(rows=128) if exact else backward
    return TpuBlocks(forward, queries, backward)


def check_memory(blocks: TpuBlocks, key_dim: int, value_dim: int, exact: bool) -> None:
    """Raises NotImplementedError if a kernel needs too much vector memory."""
    for name, block in zip(blocks._fields, blocks, strict=True):
        needed = vmem_bytes(block, key_dim, value_dim, exact)
        if needed > VMEM_LIMIT:
            raise NotImplementedError(
                f"the {name} kernel needs {needed / 2**20:.1f} MiB of vector memory for K = "
                f"{key_dim}, V = {value_dim} and blocks {block.rows} x {block.columns}, and may "
                f"use {VMEM_LIMIT / 2**20:.0f} MiB"
            )


def factor_rows(key_dim: int) -> int:
    """Features of a factor of g: K cosine and K sine rows, and two constants.

    A K that is worked on in parts fills whole registers of bf16, which are of 16 rows.
    """
    return 2 * key_dim + (_SUBLANES if key_dim <= FEATURES else 2 * _SUBLANES)


def vmem_bytes(block: TpuBlock, key_dim: int, value_dim: int, exact: bool) -> int:
    """Vector memory of the largest kernel with these blocks, from above."""
    parts, factor_parts, size = (3, 3, 4) if exact else (1, 2, 2)
    factor = factor_rows(key_dim)
    rows, columns = block.rows, block.columns
    # Operands, of which there are parts (parts + 1) / 2 copies, padded to whole registers.
    contraction = -(-factor * factor_parts * (factor_parts + 1) // 2 // _LANES) * _LANES
    values = max(value_dim * parts * (parts + 1) // 2, _LANES)
    operands = 2 * (contraction + values) * (rows + columns)
    tiles = (size + 2 * 2 * parts) * rows * columns  # sqrt(relevance), and two in parts
    blocks = 2 * size * (key_dim + value_dim) * (2 * rows + columns)  # double-buffered
    gradients = 2 * factor_parts * factor
    sums = 4 * (gradients + parts * value_dim + 24) * rows
    documents = 4 * (_LANES * rows + 32 * columns)
    scratch = 192 * 1024 + 4 * contraction * _LANES  # tables, a factor, and the compiler's own
    return operands + tiles + blocks + 2 * gradients * columns + sums + documents + scratch


class TilesVisited(NamedTuple):
    """What one kernel visits for one head of one sequence."""

    block: TpuBlock
    tiles: int


def count_tiles(
    length: int, windows, key_dim: int = 16, value_dim: int = 64, dtype=jnp.bfloat16
) -> list[TilesVisited]:
    """The tiles the forward visits in one sequence, head by head; the backward's two kernels visit
    those of their own shapes in the same way."""
    exact = jnp.dtype(dtype) == jnp.float32
    block = tpu_blocks(length, key_dim, value_dim, exact).forward
    return [_count(length, float(window), block) for window in windows]


def _count(length: int, window: float, block: TpuBlock) -> TilesVisited:
    reach = int(min(max(-(-window // 1) - 1, 0), length - 1)) if window < length else length - 1
    padded = -(-length // max(block.rows, block.columns)) * max(block.rows, block.columns)
    tiles = 0
    for start in range(0, padded, block.rows):
        tiles += (start + block.rows - 1) // block.columns + 1
        tiles -= max(start - reach, 0) // block.columns
    return TilesVisited(block, tiles)
