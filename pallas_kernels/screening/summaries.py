"""Summaries of blocks of cached keys: enough to reject a whole block without reading it, exactly.

A key counts only if its similarity exceeds 1 - width, an absolute threshold. So an upper bound on
the similarities of a block decides for all its keys at once. A summary is the box that holds the
block's keys and the radius of the ball about the box's middle that holds them too:

    q.k <= q.m + min(sum_c |q_c| e_c, |q| radius)      m = (lower + upper) / 2, e = half the box

Blocks are aligned to the flat buffer of keys, whatever rings lie in them: the summaries are a
function of the buffer alone, and a ring that overwrites old slots needs nothing special.

What a cache has to do: store `summarize(keys)` beside a new buffer and, after each write,
`update_summaries(summaries, keys, entries)` with the entries just written.

Why rejection is exact. Let u = eps / 2 and A = sum_c |q_c| (|m_c| + e_c), which is at least
sum_c |q_c k_c| for every key of the block. K products summed in any order, fused or not, err by at
most about K u sum |q_c k_c|. Therefore
    a kernel's own similarity exceeds the true q.k by at most          K u A,
    the computed q.m falls short of the true one by at most            K u A,
    the computed sum |q_c| e_c (e itself is rounded) by at most        (K + 2) u A,
    and adding the terms of the bound loses at most                    4 u A
(the ball is used only where it is the smaller, hence where |q| radius <= A too). The bound adds
(4 K + 64) u A, as computed: that exceeds the sum of these by (K + 58) u A, which leaves room for
second-order terms and for products in six bfloat16 passes (a TPU's "highest", a further 4 u A). The
radius and |q| are norms, each right to (K / 2 + 16) u with room for a rough square root; the radius
is stored (4 K + 64) u too large. Lower and upper are minima and maxima of the stored keys: no
rounding, also for bfloat16 buffers. Products below the smallest normal number may flush to zero;
they matter to no key, because 1 - s rounds to one for |s| < u / 2 and one is never accepted.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.common.numerics import accumulation_dtype

BLOCK_SLOTS = 32  # slots per summary: 1/16 of the keys' bytes; larger blocks reject far less
_PADDED_TO = 128  # summaries come in this many, so that a TPU reads whole vectors of them


class BlockSummaries(NamedTuple):
    """Boxes and balls around blocks of `BLOCK_SLOTS` consecutive slots; N covers S, padded.

    Attributes:
        lower, upper: the smallest and largest entries of the block's keys, in the keys' dtype.
        radius: largest distance of a key from (lower + upper) / 2, in `promote_types(dtype, f32)`.
    """

    lower: Float[Array, "B N K"]
    upper: Float[Array, "B N K"]
    radius: Float[Array, "B N 1"]


def summarize(keys: Float[Array, "B S K"]) -> BlockSummaries:
    """Summaries of a whole buffer; unwritten slots count as the zeros that they hold.

    Cost: one pass over the keys. Bytes: about (2 K itemsize + 4) / BLOCK_SLOTS per slot.
    """
    batch, slots, key_dim = keys.shape
    span = BLOCK_SLOTS * _PADDED_TO
    padded = jnp.pad(keys, ((0, 0), (0, -slots % span), (0, 0)), mode="edge")
    return _summaries_of(padded.reshape(batch, -1, BLOCK_SLOTS, key_dim))


def update_summaries(
    summaries: BlockSummaries, keys: Float[Array, "B S K"], entries: Int[Array, "B M"]
) -> BlockSummaries:
    """The summaries after a write: those of the touched blocks are made anew from the buffer.

    Args:
        summaries: right for the buffer before the write.
        keys: the buffer after the write.
        entries: slots of the buffer that were written. Those outside [0, S) were not.

    Cost: min(M BLOCK_SLOTS, S) keys read per row.
    """
    slots, blocks = keys.shape[1], summaries.radius.shape[1]
    if entries.shape[1] >= blocks:
        return summarize(keys)
    written = (entries >= 0) & (entries < slots)
    block = jnp.where(written, entries // BLOCK_SLOTS, blocks)
    slot = block[:, :, None] * BLOCK_SLOTS + jnp.arange(BLOCK_SLOTS, dtype=block.dtype)
    row = jnp.arange(keys.shape[0])[:, None]
    fresh = _summaries_of(keys[row[:, :, None], jnp.minimum(slot, slots - 1)])
    # Two entries of one block write the same values, so their order does not matter.
    return BlockSummaries(
        *(
            old.at[row, block].set(new, mode="drop")
            for old, new in zip(summaries, fresh, strict=True)
        )
    )


def similarity_bound(
    q: Float[Array, "..."],
    lower: Float[Array, "..."],
    upper: Float[Array, "..."],
    radius: Float[Array, "..."],
    axis: int = -1,
) -> Float[Array, "..."]:
    """At least every similarity of the block's keys as any implementation computes it in float32.

    Shapes broadcast. `axis` is the one of the key dimension; it has size one in `radius` and in the
    result. Elementwise code and sums only, so that kernels use it too.
    """
    dtype = accumulation_dtype(q, lower)
    q, lower, upper = q.astype(dtype), lower.astype(dtype), upper.astype(dtype)

    def total(x):
        return jnp.sum(x, axis=axis, keepdims=True)

    middle, extent = _middle_and_extent(lower, upper)
    size = jnp.abs(q)
    box, ball = total(size * extent), jnp.sqrt(total(q * q)) * radius
    slack = total(size * (jnp.abs(middle) + extent)) * _slack(lower.shape[axis], dtype)
    return total(q * middle) + jnp.minimum(box, ball) + slack


def may_accept(bound: Float[Array, "..."], width: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Whether a block with this bound can hold an accepted key; False is certain.

    The trim is zero iff (1 - s) / width, as computed, is at least one. For every s <= bound the
    computed 1 - s is at least the computed 1 - bound; the factor covers a division that is wrong by
    up to seven units in the last place.
    """
    return 1 - bound < width * (1 + 8 * jnp.finfo(bound.dtype).eps)


def _summaries_of(keys_bnck: Array) -> BlockSummaries:
    lower, upper = jnp.min(keys_bnck, axis=2), jnp.max(keys_bnck, axis=2)
    dtype = accumulation_dtype(keys_bnck)
    middle, _ = _middle_and_extent(lower.astype(dtype), upper.astype(dtype))
    offset = keys_bnck.astype(dtype) - middle[:, :, None]
    radius = jnp.sqrt(jnp.max(jnp.sum(offset * offset, axis=-1), axis=2))
    return BlockSummaries(
        lower, upper, (radius * (1 + _slack(keys_bnck.shape[-1], dtype)))[..., None]
    )


def _middle_and_extent(lower: Array, upper: Array) -> tuple[Array, Array]:
    middle = (lower + upper) * 0.5
    return middle, jnp.maximum(upper - middle, middle - lower)


def _slack(key_dim: int, dtype: jnp.dtype) -> float:
    """(4 K + 64) u of the module's text."""
    return float((4 * key_dim + 64) * jnp.finfo(dtype).eps / 2)
