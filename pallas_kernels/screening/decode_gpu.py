"""Decoding of screening tiles on a GPU (Pallas-Triton): reads keys first, then accepted values.

Each tile's part of the flat buffer is dealt out in runs of 128 slots to many programs, whose sums
are added afterwards in a fixed order. Loads are masked row by row, and a lane that is switched off
moves no bytes: a key's row is read only if its block's summary may hold an accepted key, and a
value's row only if its own key is accepted. Products are in float32 on the ordinary units: with
one to four queries a tensor core would mostly multiply padding, and rounds.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.common import dispatch
from pallas_kernels.common.kernel_call import kernel_call
from pallas_kernels.common.pallas import pl, plgpu
from pallas_kernels.screening.rings import (
    check_for_kernels,
    half_cosine,
    readable,
    ring_head,
    slot_positions,
)
from pallas_kernels.screening.summaries import (
    BLOCK_SLOTS,
    BlockSummaries,
    may_accept,
    similarity_bound,
)

RUN_SLOTS = 128  # slots handled at once: 64 accumulators per thread at V = 64
_MOST_SPLITS = 256  # programs per tile and row: enough for one tile to fill a large GPU
_WARPS = 4


def screening_decode_gpu(
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
    """`screening_decode` in a Triton kernel; products are in float32 whatever `precision` says.

    NotImplementedError for float64, more than four queries, and K or V that are no power of two.
    """
    del precision
    h, _ = decode_and_count(
        q, keys, values, positions, length, start, offset, size, window, width, summaries
    )
    return h


def decode_and_count(
    q, keys, values, positions, length, start, offset, size, window, width, summaries=None
) -> tuple[Float[Array, "B T H V"], Int[Array, "B H 2"]]:
    """(h, rows of keys and rows of values that each tile's programs read)."""
    _check(q, keys, values)
    batch, queries, heads, _ = q.shape
    slots, value_dim = values.shape[1:]
    splits = min(_MOST_SPLITS, pl.cdiv(slots, RUN_SLOTS))
    partial = jax.ShapeDtypeStruct((batch, heads, splits, queries, value_dim), jnp.float32)
    read = jax.ShapeDtypeStruct((batch, heads, splits, 2), jnp.int32)
    whole = pl.BlockSpec(memory_space=pl.ANY)
    h_bhptv, read_bhp2 = kernel_call(
        functools.partial(_kernel, queries=queries, slots=slots, splits=splits),
        grid=(splits, heads, batch),
        in_specs=[whole] * (10 + len(summaries or ())),
        out_specs=[whole, whole],
        out_shape=[partial, read],
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=bool(dispatch.interpretation()),
        name="screening_decode",
    )(
        *(q.astype(jnp.float32), keys, values),
        *(x.astype(jnp.int32) for x in (positions, length, start, offset, size)),
        *(x.astype(jnp.float32) for x in (window, width)),
        *(summaries or ()),
    )
    return jnp.sum(h_bhptv, axis=2).swapaxes(1, 2), jnp.sum(read_bhp2, axis=2)


def _kernel(
    q_ref, keys_ref, values_ref, positions_ref, length_ref, start_ref, offset_ref, size_ref,
    window_ref, width_ref, *refs, queries, slots, splits,
):  # fmt: skip
    *summary_refs, h_ref, read_ref = refs
    split, tile, row = (pl.program_id(axis) for axis in range(3))
    key_dim, value_dim = keys_ref.shape[-1], values_ref.shape[-1]
    length, start = length_ref[row], start_ref[row]
    offset, size = offset_ref[tile], size_ref[tile]
    window, width = window_ref[tile], width_ref[tile]
    live = jnp.minimum(size, length)
    head = ring_head(length, size)
    q_tk = [q_ref[row, t, tile, :][None, :] for t in range(queries)]
    lane = jax.lax.broadcasted_iota(jnp.int32, (RUN_SLOTS, 1), 0)

    def add_run(step, carry):
        base = (first_run + split + step * splits) * RUN_SLOTS
        entry = base + lane
        slot = entry - offset
        position = slot_positions(slot, length, size, head)
        reads = [
            readable(slot, position, positions_ref[row, t], live, start, window)
            for t in range(queries)
        ]
        wanted = functools.reduce(jnp.logical_or, [may_read for may_read, _ in reads])
        wanted &= entry < slots
        if summary_refs:
            wanted &= _from_summaries(summary_refs, q_tk, width, row, base)

        def with_keys(carry):
            h, (keys_read, values_read) = carry
            k = plgpu.load(
                keys_ref.at[row, pl.ds(base, RUN_SLOTS), pl.ds(0, key_dim)],
                mask=jnp.broadcast_to(wanted, (RUN_SLOTS, key_dim)),
                other=0,
            ).astype(jnp.float32)
            alphas = []
            for q, (may_read, _) in zip(q_tk, reads, strict=True):
                s = jnp.sum(q * k, axis=1, keepdims=True)
                alpha = 1 - (1 - s) / width
                # Triton's maximum would make zero of NaN.
                alphas.append(jnp.where(wanted & may_read & ~(alpha <= 0), alpha, 0))
            accepted = functools.reduce(jnp.logical_or, [alpha != 0 for alpha in alphas])
            keys_read += jnp.sum(wanted.astype(jnp.int32))

            def with_values(h):
                v = plgpu.load(
                    values_ref.at[row, pl.ds(base, RUN_SLOTS), pl.ds(0, value_dim)],
                    mask=jnp.broadcast_to(accepted, (RUN_SLOTS, value_dim)),
                    other=0,
                ).astype(jnp.float32)
                out = []
                for h_v, alpha, (_, distance) in zip(h, alphas, reads, strict=True):
                    d = alpha * alpha * half_cosine(distance, window)
                    out.append(h_v + jnp.sum(jnp.where(alpha != 0, d, 0) * v, axis=0))
                return tuple(out)

            count = jnp.sum(accepted.astype(jnp.int32))
            h = jax.lax.cond(count > 0, with_values, lambda h: h, h)
            return h, (keys_read, values_read + count)

        any_wanted = jnp.sum(wanted.astype(jnp.int32)) > 0
        return jax.lax.cond(any_wanted, with_keys, lambda carry: carry, carry)

    first_run = jax.lax.div(offset, RUN_SLOTS)
    end_run = jax.lax.div(offset + live + RUN_SLOTS - 1, RUN_SLOTS)
    mine = jax.lax.div(end_run - first_run - split + splits - 1, splits)
    zero = jnp.int32(0)
    nothing = (tuple(jnp.zeros(value_dim, jnp.float32) for _ in range(queries)), (zero, zero))
    h, read = jax.lax.fori_loop(0, jnp.where(live > 0, mine, 0), add_run, nothing)
    for t in range(queries):
        h_ref[row, tile, split, t, :] = h[t]
    for i in range(2):
        read_ref[row, tile, split, i] = read[i]


def _from_summaries(refs, q_tk, width, row, base):
    """Which slots of the run lie in blocks that may hold an accepted key."""
    blocks = RUN_SLOTS // BLOCK_SLOTS
    at = pl.ds(jax.lax.div(base, BLOCK_SLOTS), blocks)
    lower, upper, radius = (ref[row, at, :] for ref in refs)
    may = functools.reduce(
        jnp.logical_or,
        [may_accept(similarity_bound(q, lower, upper, radius), width) for q in q_tk],
    )
    return jnp.broadcast_to(may, (blocks, BLOCK_SLOTS)).reshape(RUN_SLOTS, 1)


def _check(q, keys, values) -> None:
    check_for_kernels(q, keys, values)
    for name, size in (("K", q.shape[-1]), ("V", values.shape[-1])):
        if size & (size - 1):
            raise NotImplementedError(f"{name} must be a power of two, got {size}")
