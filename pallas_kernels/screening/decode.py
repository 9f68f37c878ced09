"""Screening of a few new queries against a cache of old keys, and the cache's slot arithmetic.

Each head ("tile") owns a ring inside one flat buffer: `size` slots from `offset` on. The key at
position p of a row lies in slot p mod size. A ring of ceil(window) slots loses nothing, because a
key at distance >= window contributes exactly zero. Sums over keys simply add (there is no softmax),
so these old keys and the new tokens' own keys can be handled apart.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.common import dispatch
from pallas_kernels.common.numerics import accumulation_dtype
from pallas_kernels.common.sharding import shard_op
from pallas_kernels.screening.decode_gpu import screening_decode_gpu
from pallas_kernels.screening.decode_tpu import screening_decode_tpu
from pallas_kernels.screening.reference import trim
from pallas_kernels.screening.summaries import (
    BLOCK_SLOTS,
    BlockSummaries,
    may_accept,
    similarity_bound,
)

_BLOCK = BLOCK_SLOTS  # slots read at once; narrow tiles waste at most this many
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
    length: Int[Array, " B"],
    start: Int[Array, " B"],
    offset: Int[Array, " H"],
    size: Int[Array, " H"],
    window: Float[Array, " H"],
    width: Float[Array, " H"],
    *,
    summaries: BlockSummaries | None = None,
    implementation: str | Sequence[str] | None = None,
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
        summaries: of exactly these keys, see `pallas_kernels.screening.summaries`. Blocks that
            cannot hold an accepted key are then left out, which changes no term of any sum.
        implementation: "chunked" (XLA), "pallas_tpu", "pallas_gpu", a sequence of these, or None
            for the platform's kernel and "chunked" where it does not support the arguments.
        precision: of the products of "chunked"; its similarities are at the highest with
            `summaries`, whose proof needs it. The kernels are always in full float32.

    Returns:
        [B, T, H, V] in `promote_types(dtype, float32)`, so that the caller can add the new tokens'
        own part before rounding.

    Cost: T * sum over tiles of min(size, longest row) pairs, whatever the buffer's capacity. The
    kernels read keys first, and values only where a key is accepted. Not differentiable in reverse
    mode.
    """
    available = {
        "chunked": screening_decode_chunked,
        "pallas_tpu": screening_decode_tpu,
        "pallas_gpu": screening_decode_gpu,
    }

    def op(*arrays):
        *arrays, lower, upper, radius = arrays
        return dispatch.run(
            "screening_decode", available, implementation, *arrays,
            summaries=None if lower is None else BlockSummaries(lower, upper, radius),
            precision=precision,
        )  # fmt: skip

    # Every device has the buffer with the rings of all tiles, and reads those of its own.
    in_axes = ("b.h.", "b..", "b..", "b.", "b", "b", "h", "h", "h", "h", "b..", "b..", "b..")
    return shard_op(
        op, in_axes, "b.h.", q, keys, values, positions, length, start, offset, size, window, width,
        *(summaries or (None, None, None)),
    )  # fmt: skip


def screening_decode_chunked(
    q: Float[Array, "B T H K"],
    keys: Float[Array, "B S K"],
    values: Float[Array, "B S V"],
    positions: Int[Array, "B T"],
    length: Int[Array, " B"],
    start: Int[Array, " B"],
    offset: Int[Array, " H"],
    size: Int[Array, " H"],
    window: Float[Array, " H"],
    width: Float[Array, " H"],
    *,
    summaries: BlockSummaries | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "B T H V"]:
    """`screening_decode` in XLA: a loop over the blocks of all tiles, a group of them at a time.

    With summaries, a group whose blocks are all rejected is skipped.
    """
    dtype = accumulation_dtype(q, keys)
    batch, queries, heads, _ = q.shape
    q = q.astype(dtype)
    live = jnp.minimum(size, jnp.max(length))
    # A tile's blocks begin with its ring or, to match the summaries, at a multiple of the block.
    lead = jnp.zeros_like(offset) if summaries is None else offset % _BLOCK
    blocks = jnp.where(live > 0, (lead + live + _BLOCK - 1) // _BLOCK, 0)
    block_ends = jnp.cumsum(blocks)  # the loop's work list, over all tiles
    lane = jnp.arange(_BLOCK, dtype=jnp.int32)
    similarity_precision = precision if summaries is None else jax.lax.Precision.HIGHEST

    def add_group(step, h_bthv):
        item = step * _GROUP + jnp.arange(_GROUP, dtype=jnp.int32)
        tile = jnp.minimum(jnp.searchsorted(block_ends, item, side="right"), heads - 1)
        first_item = jnp.where(tile > 0, block_ends[tile - 1], 0)
        slot = (item - first_item)[:, None] * _BLOCK + lane - lead[tile][:, None]  # [group, block]
        own = (slot >= 0) & (slot < live[tile][:, None]) & (item < block_ends[-1])[:, None]
        entry = jnp.where(own, offset[tile][:, None] + slot, 0)

        # The latest position before `length` that falls into this slot.
        newest = length[:, None, None] - 1
        position = newest - (newest - slot) % size[tile][:, None]
        held = own & (position >= start[:, None, None])
        if summaries is not None:
            held &= wanted(summaries, tile, jnp.max(entry, axis=1) // BLOCK_SLOTS)[:, :, None]
        distance = positions[:, :, None, None] - position[:, None]  # [B, T, group, block]
        w = window[tile][:, None]
        readable = held[:, None] & (distance < w) & (positions >= 0)[:, :, None, None]

        def add(h_bthv):
            mask = jnp.where(readable, (jnp.cos(jnp.pi * distance.astype(dtype) / w) + 1) / 2, 0)
            similarity = jnp.einsum(
                "btgk,bgsk->bgts", q[:, :, tile], keys[:, entry].astype(dtype),
                precision=similarity_precision,
            )  # fmt: skip
            relevance = trim(similarity, width[tile]) * mask.swapaxes(1, 2)
            partial = jnp.einsum(
                "bgts,bgsv->btgv", relevance, values[:, entry].astype(dtype), precision=precision
            )
            return h_bthv.at[:, :, tile].add(partial)

        if summaries is None:
            return add(h_bthv)
        return jax.lax.cond(jnp.any(readable), add, lambda h: h, h_bthv)

    def wanted(summaries, tile, block):
        """[B, group]: whether some query may accept a key of the tile's block."""
        lower, upper, radius = (x[:, block][:, None] for x in summaries)  # [B, 1, group, K]
        bound_btg1 = similarity_bound(q[:, :, tile], lower, upper, radius)
        return jnp.any(may_accept(bound_btg1[..., 0], width[tile]), axis=1)

    h = jnp.zeros((batch, queries, heads, values.shape[-1]), dtype)
    steps = (block_ends[-1] + _GROUP - 1) // _GROUP
    return jax.lax.fori_loop(0, steps, add_group, h)
