"""Screening of a few new queries against a cache of old keys, and the cache's slot arithmetic.

Each head ("tile") owns a ring inside one flat buffer: `size` slots from `offset` on. The key at
position p of a row lies in slot p mod size. A ring of ceil(window) slots loses nothing, because a
key at distance >= window contributes exactly zero. Sums over keys simply add (there is no softmax),
so these old keys and the new tokens' own keys can be handled apart.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.common.numerics import accumulation_dtype
from pallas_kernels.screening.reference import trim

_BLOCK = 32  # slots read at once; narrow tiles waste at most this many
_GROUP = 16  # blocks, of whatever tiles, handled per step of the loop


def ring_slots(
    positions: Int[Array, "..."], length: Int[Array, "..."], size: Int[Array, "..."]
) -> Int[Array, "..."]:
    """Slot for each position, or -1 where the ring will not hold it.

    `length` is the row's length after the write: only its last `size` positions stay.
    """
    keep = (positions >= 0) & (positions >= length - size)
    return jnp.where(keep, positions % size, -1)


def screening_decode(
    q: Float[Array, "B T H K"],
    keys: Float[Array, "B S K"],
    values: Float[Array, "B S V"],
    positions: Int[Array, "B T"],
    length: Int[Array, "B"],
    start: Int[Array, "B"],
    offset: Int[Array, "H"],
    size: Int[Array, "H"],
    window: Float[Array, "H"],
    width: Float[Array, "H"],
    *,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "B T H V"]:
    """h of new queries over the keys a cache holds (Multiscreen v3 eq. 9-12, old keys only).

    Args:
        q: unit length, MiPE applied.
        keys, values: the flat buffer of rings; S covers at least every offset + size.
        positions: index in the row of each query, all >= the row's `length`. A query at a negative
            position reads nothing.
        length: tokens of each row written so far.
        start: first position a row's queries may read (where their document began).
        offset, size: each tile's ring.
        window, width: as in `screening`.

    Returns:
        [B, T, H, V] in `promote_types(dtype, float32)`, so that the caller can add the new tokens'
        own part before rounding.

    Cost: T * sum over tiles of min(size, longest row) pairs, whatever the buffer's capacity. Not
    differentiable in reverse mode.
    """
    dtype = accumulation_dtype(q, keys)
    batch, queries, heads, _ = q.shape
    q = q.astype(dtype)
    live = jnp.minimum(size, jnp.max(length))
    block_ends = jnp.cumsum((live + _BLOCK - 1) // _BLOCK)  # the loop's work list, over all tiles
    lane = jnp.arange(_BLOCK, dtype=jnp.int32)

    def add_group(step, h_bthv):
        item = step * _GROUP + jnp.arange(_GROUP, dtype=jnp.int32)
        tile = jnp.minimum(jnp.searchsorted(block_ends, item, side="right"), heads - 1)
        first_item = jnp.where(tile > 0, block_ends[tile - 1], 0)
        slot = (item - first_item)[:, None] * _BLOCK + lane  # [group, block]
        own = (slot < live[tile][:, None]) & (item < block_ends[-1])[:, None]
        entry = jnp.where(own, offset[tile][:, None] + slot, 0)

        # The latest position before `length` that falls into this slot.
        newest = length[:, None, None] - 1
        position = newest - (newest - slot) % size[tile][:, None]
        held = own & (position >= start[:, None, None])
        distance = positions[:, :, None, None] - position[:, None]  # [B, T, group, block]
        w = window[tile][:, None]
        readable = held[:, None] & (distance < w) & (positions >= 0)[:, :, None, None]
        mask = jnp.where(readable, (jnp.cos(jnp.pi * distance.astype(dtype) / w) + 1) / 2, 0)

        similarity = jnp.einsum(
            "btgk,bgsk->bgts", q[:, :, tile], keys[:, entry].astype(dtype), precision=precision
        )
        relevance = trim(similarity, width[tile]) * mask.swapaxes(1, 2)
        partial = jnp.einsum(
            "bgts,bgsv->btgv", relevance, values[:, entry].astype(dtype), precision=precision
        )
        return h_bthv.at[:, :, tile].add(partial)

    h = jnp.zeros((batch, queries, heads, values.shape[-1]), dtype)
    steps = (block_ends[-1] + _GROUP - 1) // _GROUP
    return jax.lax.fori_loop(0, steps, add_group, h)
