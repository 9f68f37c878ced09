"""Layouts of attention tiles: heads of a group beside their queries, and what is visible."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

# Measured on CPU (T = 4096 and 8192, heads of 32 and 64): forward and backward are fastest here.
QUERY_ROWS = 512
KEY_BLOCK = 256

Segments = tuple[Int[Array, "B n C"], Int[Array, "B S"]]


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


def segment_blocks(
    segment_ids: Int[Array, "B T"] | None, query_block: int, key_block: int
) -> Segments | None:
    """Segment ids laid out for `visible_tile`, padded with 0."""
    if segment_ids is None:
        return None
    segment_ids = segment_ids.astype(jnp.int32)
    of_queries = pad_to(segment_ids, 1, query_block)
    return (
        of_queries.reshape(len(segment_ids), -1, query_block),
        pad_to(segment_ids, 1, key_block),
    )


def key_block_range(i: Array, query_block: int, key_block: int) -> tuple[Array, Array]:
    """(blocks of keys wholly before query block i, end of those that any of its queries sees)."""
    first = i * query_block
    return (first + 1) // key_block, (first + query_block + key_block - 1) // key_block


def visible_tile(
    i: Array, j: Array, rows: int, query_block: int, key_block: int, segments: Segments | None
) -> Bool[Array, "#B 1 RC SC"]:
    """Which keys of block j the queries of block i see: none later, all of the same document."""
    query = i * query_block + jnp.arange(query_block)
    key = j * key_block + jnp.arange(key_block)
    visible = (query[:, None] >= key[None, :])[None]
    if segments is not None:
        of_query = segments[0][:, i, :, None]
        of_key = jax.lax.dynamic_slice_in_dim(segments[1], j * key_block, key_block, 1)[:, None, :]
        visible = visible & (of_query == of_key) & (of_query != 0)
    return jnp.tile(visible, (1, rows // query_block, 1))[:, None]
