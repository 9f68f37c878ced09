"""Which block sizes the kernels of screening use, and what memory they need."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

_LANES = 128
# What a kernel may use of the vector memory of every chip without asking for more.
VMEM_LIMIT = 16 * 2**20


class TpuBlock(NamedTuple):
    """Block sizes of one TPU kernel."""

    rows: int  # tokens of the side that stays
    columns: int  # tokens of the side that is streamed
    strip: int  # rows that are judged at a time
    part_rows: int = 128  # of a part of a tile on the window's edge
    part_columns: int = 128
    staged: bool = False  # whether the products of the backward are scheduled apart
    rolled: bool = False  # whether strips are a loop, which overlaps nothing, at run time


class TpuBlocks(NamedTuple):
    """Block sizes of the three TPU kernels."""

    forward: TpuBlock
    queries: TpuBlock
    keys: TpuBlock

    @property
    def multiple(self) -> int:
        """What the length is padded to a multiple of; sizes are powers of two."""
        return max(max(block.rows, block.columns) for block in self)


def tpu_blocks(
    length: int, key_dim: int, value_dim: int, exact: bool, packed: bool = False
) -> TpuBlocks:
    """The block sizes for a call.

    From compiled schedules (`experiments/bench/results/tpu_kernels.csv`): a product ends with a
    wait of a hundred cycles, so tiles are as large as registers and short sequences allow. A chip
    with 256-wide matrix units works off products faster than its store slot takes results; there,
    smaller pieces avoid spills.

    Args:
        exact: float32 products. Their kernel for dq and dwindow keeps few rows, since dwindow is a
            difference of angles counted from the first of them.
        packed: with documents, whose masks need registers too.
    """
    wide = _matrix_unit_width() > _LANES
    size = _LANES
    while size < length:
        size *= 2
    strip = 64 if wide or exact else 128
    if wide and packed:
        strip = 32
    largest = 256 if exact else 1024
    block = TpuBlock(min(size, largest), min(size, largest, 512), strip, staged=wide)
    queries = block._replace(rows=min(block.rows, 128)) if exact else block
    blocks = TpuBlocks(block, queries, block)
    for name, block in zip(blocks._fields, blocks, strict=True):
        needed = vmem_bytes(block, key_dim, value_dim, exact)
        if needed > VMEM_LIMIT:
            raise NotImplementedError(
                f"the {name} kernel needs {needed / 2**20:.1f} MiB of vector memory for K = "
                f"{key_dim}, V = {value_dim} and blocks {block.rows} x {block.columns}, and may "
                f"use {VMEM_LIMIT / 2**20:.0f} MiB"
            )
    return blocks


def vmem_bytes(block: TpuBlock, key_dim: int, value_dim: int, exact: bool) -> int:
    """Vector memory of the largest kernel with these blocks, from above."""
    size = 4 if exact else 2
    factor = 2 * key_dim + 8
    contraction = -(-factor * (1 if exact else 3) // _LANES) * _LANES
    parts = factor * (1 if exact else 2)
    rows, columns = block.rows, block.columns
    operands = contraction * (rows + columns) + max(value_dim, _LANES) * rows
    tiles = 3 * rows * columns  # root, relevance, and the gradient of g
    blocks = 2 * (key_dim + value_dim) * (2 * rows + columns)  # double-buffered in and out
    sums = 2 * parts * rows + value_dim * rows + 24 * rows
    gradient_operand = 2 * parts * columns
    documents = _LANES * rows + 32 * columns
    scratch = 128 * 1024  # the compiler's own
    return size * (operands + tiles + blocks + gradient_operand) + 4 * (sums + documents) + scratch


def _matrix_unit_width() -> int:
    try:
        return pltpu.get_tpu_info().mxu_column_size
    except (ValueError, NotImplementedError):
        return 256  # interpreted: any will do


class TilesVisited(NamedTuple):
    """What one kernel visits for one head of one sequence."""

    block: TpuBlock
    tiles: int
    needed: int  # tiles of this shape that hold a pair within the window


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
    tiles = needed = 0
    for start in range(0, padded, block.rows):
        first = max(start - reach, 0) // block.columns
        stop = (start + block.rows - 1) // block.columns + 1
        tiles += stop - first
        # Brute force: a tile is needed if its nearest pair 0 <= i - j is within reach.
        for key in range(0, padded, block.columns):
            nearest = max(start - (key + block.columns - 1), 0)
            farthest = start + block.rows - 1 - key
            needed += start < length and key < length and farthest >= 0 and nearest <= reach
    return TilesVisited(block, tiles, needed)
