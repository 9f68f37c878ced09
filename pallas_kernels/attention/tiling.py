"""Layouts of attention tiles: heads of a group beside their queries, and what is visible."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

# Measured on CPU (T = 4096 and 8192, heads of 32 and 64): forward and backward are fastest here.
QUERY_ROWS = 512
KEY_BLOCK = 256

Segments = tuple[Int[Array, "B n C"], Int[Array, "B P"]]


def block_size(length: int, largest: int) -> int:
    """A block size that splits `length` evenly, at most `largest`, in steps of 8 above 8."""
    if length <= 8:
        return length
    blocks = math.ceil(length / largest)
    return min(8 * math.ceil(length / blocks / 8), largest)


def pad_to(x: Array, axis: int, multiple: int) -> Array:
    """Zeros after the end of `axis` up to a multiple."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths)


def query_blocks(
    q: Shaped[Array, "B T H K"], groups: int, block: int
) -> Shaped[Array, "n B G RC K"]:
    """Blocks of queries; the R heads that share a group of keys become rows of one product."""
    q = pad_to(q, 1, block)
    batch, length, heads, dim = q.shape
    q = q.reshape(batch, length // block, block, groups, heads // groups, dim)
    q = q.transpose(1, 0, 3, 4, 2, 5)
    return q.reshape(length // block, batch, groups, -1, dim)


def unblock_queries(
    x: Float[Array, "n B G RC K"], block: int, length: int
) -> Float[Array, "B T H K"]:
    """The inverse of `query_blocks`; drops the padding."""
    n, batch, groups, rows, dim = x.shape
    x = x.reshape(n, batch, groups, rows // block, block, dim).transpose(1, 0, 4, 2, 3, 5)
    return x.reshape(batch, n * block, groups * rows // block, dim)[:, :length]


class Tiling(NamedTuple):
    """Sizes of tiles; `before` keys come before the first query."""

    before: int
    query_block: int
    key_block: int

    def key_block_range(self, i: Array) -> tuple[Array, Array]:
        """(blocks of keys wholly before query block i, end of those that any of it sees)."""
        first = self.before + i * self.query_block
        end = first + self.query_block
        return (first + 1) // self.key_block, (end + self.key_block - 1) // self.key_block

    def visible(
        self, i: Array, j: Array, rows: int, segments: Segments | None
    ) -> Bool[Array, "#B 1 RC SC"]:
        """Which keys of block j queries of block i see: none later, all of the same document."""
        query = self.before + i * self.query_block + jnp.arange(self.query_block)
        key = j * self.key_block + jnp.arange(self.key_block)
        visible = (query[:, None] >= key[None, :])[None]
        if segments is not None:
            of_query = segments[0][:, i, :, None]
            of_key = jax.lax.dynamic_slice_in_dim(
                segments[1], j * self.key_block, self.key_block, 1
            )[:, None, :]
            visible = visible & (of_query == of_key) & (of_query != 0)
        return jnp.tile(visible, (1, rows // self.query_block, 1))[:, None]


def segment_blocks(segment_ids: Int[Array, "B S"] | None, tiling: Tiling) -> Segments | None:
    """Segment ids of queries and of keys as `Tiling.visible` wants them, padded with 0."""
    if segment_ids is None:
        return None
    segment_ids = segment_ids.astype(jnp.int32)
    of_queries = pad_to(segment_ids[:, tiling.before :], 1, tiling.query_block)
    return (
        of_queries.reshape(len(segment_ids), -1, tiling.query_block),
        pad_to(segment_ids, 1, tiling.key_block),
    )
