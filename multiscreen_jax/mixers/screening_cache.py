"""Rings of keys and values that screening tiles decode from."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from multiscreen_jax.cache import Chunk, Cursor, check_size
from pallas_kernels.screening.decode import ring_slots
from pallas_kernels.screening.summaries import BlockSummaries, summarize, update_summaries

SLOTS_MULTIPLE = 128  # of a cache, so that a TPU reads whole vectors of it


@struct.dataclass
class ScreeningCache:
    """Rings of unit keys (MiPE applied) and unit values for every tile, in one flat buffer.

    A tile with a finite window owns ceil(window) slots, so neither memory nor time per token grows
    with the context; an infinite one owns `max_length` slots. Sizes are fixed when the cache is
    made, from the windows the parameters had then: a cache is valid for those parameters only.

    Attributes:
        keys, values: the slots; tile (n, h) owns [offset[n, h], offset[n, h] + size[n, h]).
        offset, size: the table of rings.
        summaries: of blocks of keys, by which decoding rejects whole blocks unread; or None.
    """

    keys: Float[Array, "B S K"]
    values: Float[Array, "B S V"]
    offset: Int[Array, "N H"]
    size: Int[Array, "N H"]
    summaries: BlockSummaries | None


def init_screening_cache(
    window: Float[Array, "N H"],
    batch: int,
    max_length: int,
    key_dim: int,
    value_dim: int,
    dtype: jnp.dtype,
    block_summaries: bool,
) -> tuple[ScreeningCache, int]:
    """An empty cache for concrete windows, and the most tokens that a row may hold.

    That is `max_length` if some ring is smaller than its window, and any number otherwise. Bytes =
    batch (K + V) itemsize sum of ring sizes, rounded up to a multiple of 128.
    """
    if isinstance(window, jax.core.Tracer):
        raise TypeError(
            "init_cache sizes its rings from the learned windows, so it needs concrete parameters: "
            "call it outside jit"
        )
    check_size(batch, max_length)
    needed = np.ceil(np.asarray(window, np.float64))
    if np.isnan(needed).any():
        raise FloatingPointError("a tile's window is NaN: are the parameters finite?")
    size = np.minimum(needed, max_length).astype(np.int32)
    offset = (np.cumsum(size.ravel()) - size.ravel()).reshape(size.shape).astype(np.int32)
    lossless = bool((needed <= max_length).all())
    slots = -(-int(size.sum()) // SLOTS_MULTIPLE) * SLOTS_MULTIPLE
    shape = (batch, slots, key_dim, value_dim)
    empty = empty_cache(jnp.asarray(offset), jnp.asarray(size), shape, dtype, block_summaries)
    return empty, np.iinfo(np.int32).max if lossless else max_length


def empty_cache(
    offset: Int[Array, "N H"],
    size: Int[Array, "N H"],
    shape: tuple[int, int, int, int],
    dtype: jnp.dtype,
    block_summaries: bool,
) -> ScreeningCache:
    """Zeros [B, S, K] and [B, S, V], for B, S, K, V = `shape`."""
    batch, slots, key_dim, value_dim = shape
    keys = jnp.zeros((batch, slots, key_dim), dtype)
    return ScreeningCache(
        keys=keys,
        values=jnp.zeros((batch, slots, value_dim), dtype),
        offset=offset,
        size=size,
        summaries=summarize(keys) if block_summaries else None,
    )


def write_screening_cache(
    cache: ScreeningCache,
    chunk: Chunk,
    cursor: Cursor,
    keys: Float[Array, "N B T H K"],
    values: Float[Array, "N B T H V"],
) -> ScreeningCache:
    """The cache after the tokens of `chunk`, all layers at once; `cursor` is the one after it."""
    slot = ring_slots(
        jnp.where(chunk.segment_ids != 0, chunk.index, -1)[None, :, :, None],
        cursor.length[None, :, None, None],
        cache.size[:, None, None, :],
    )
    # Positions that stay out (padding, or older than the ring) point past the buffer: dropped.
    slots = cache.keys.shape[1]
    index = jnp.where(slot < 0, slots, slot + cache.offset[:, None, None, :])
    row = jnp.arange(index.shape[1])[None, :, None, None]
    new_keys = cache.keys.at[row, index].set(keys.astype(cache.keys.dtype), mode="drop")
    summaries = cache.summaries
    if summaries is not None:
        written = jnp.moveaxis(index, 1, 0).reshape(index.shape[1], -1)
        summaries = update_summaries(summaries, new_keys, written)
    return cache.replace(
        keys=new_keys,
        values=cache.values.at[row, index].set(values.astype(cache.values.dtype), mode="drop"),
        summaries=summaries,
    )
