"""Decoding of screening tiles on a TPU: reads keys first, then accepted blocks of values.

One program per row walks through all tiles, in spans of 4096 slots. The keys of a span, and the
summaries of the span after it, are on their way from HBM while the span before is being computed.
Every copy is made only if it is needed: 128 slots of keys (or the span at once, if all of it is) if
their summaries may hold an accepted key, 128 slots of values if some key among them is accepted.

The buffers are read slots-minor, as [B, K, S] and [B, V, S]: that is how XLA keeps arrays with so
few columns, so the transposes below move nothing. With slots along the lanes both products are
elementwise float32 code plus one sum per tile; for a few queries that keeps up with the memory.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.common.kernel_call import kernel_call
from pallas_kernels.common.pallas import pl, pltpu
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

KEY_SLOTS = 128  # slots of one copy of keys: one vector register wide
VALUE_SLOTS = 128  # the same for values
SUMMARY_SLOTS = 4096  # slots that one copy of summaries is about: 128 of them
SUMMARIES_FROM = 1024  # live slots of a ring from which on reading summaries can pay
_SPAN = SUMMARY_SLOTS  # slots of one step
_LANES = 128
_READS = _SPAN // KEY_SLOTS
_NOTHING, _WHOLE, _PARTS = 0, 1, 2  # which of a span's keys are copied
_BITS, _PACKED = 3, 8  # counts up to KEY_SLOTS / BLOCK_SLOTS = 4; a float32 holds 24 bits exactly
_ALL_MAY = sum(KEY_SLOTS // BLOCK_SLOTS << _BITS * i for i in range(_PACKED))


def screening_decode_tpu(
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
    """`screening_decode` in a Mosaic kernel; products are in float32 whatever `precision` says.

    NotImplementedError for float64, more than four queries, K or V that are no multiple of 16, and
    S that is no multiple of `KEY_SLOTS`: padding here would copy the whole cache.
    """
    del precision
    h, _ = decode_and_count(
        q, keys, values, positions, length, start, offset, size, window, width, summaries
    )
    return h


def decode_and_count(
    q, keys, values, positions, length, start, offset, size, window, width, summaries=None
) -> tuple[Float[Array, "B T H V"], Int[Array, "B H 2"]]:
    """(h, slots of keys and slots of values that were copied for each tile)."""
    _check(q, keys, values)
    batch, queries, heads, key_dim = q.shape
    value_dim = values.shape[-1]
    in_hbm = pl.BlockSpec(memory_space=pl.ANY)
    chunk = _chunk_slots(queries)
    buffers = [
        pltpu.VMEM((2, key_dim, _SPAN), keys.dtype),
        pltpu.VMEM((chunk // VALUE_SLOTS, value_dim, VALUE_SLOTS), values.dtype),
        pltpu.VMEM((queries, _SPAN), jnp.float32),
        pltpu.VMEM((1, chunk), jnp.float32),
        pltpu.VMEM((queries, chunk), jnp.float32),
        pltpu.VMEM((queries, value_dim, VALUE_SLOTS), jnp.float32),
        pltpu.SMEM((2,), jnp.int32),
        pltpu.SMEM((2, _READS), jnp.int32),
        pltpu.SMEM((chunk // VALUE_SLOTS,), jnp.int32),
        pltpu.SemaphoreType.DMA((2,)),
        pltpu.SemaphoreType.DMA((chunk // VALUE_SLOTS,)),
    ]
    if summaries is not None:
        buffers += [
            pltpu.VMEM((2, key_dim, _LANES), keys.dtype),
            pltpu.VMEM((2, key_dim, _LANES), keys.dtype),
            pltpu.VMEM((2, 1, _LANES), jnp.float32),
            pltpu.SMEM((_READS // _PACKED,), jnp.int32),
            pltpu.SemaphoreType.DMA((2,)),
        ]
    scalars = (
        *(x.astype(jnp.int32) for x in (positions, length, start, offset, size)),
        *(x.astype(jnp.float32) for x in (window, width)),
    )
    # Transposes of views: see the module's text.
    arrays = [x.swapaxes(1, 2) for x in (keys, values, *(summaries or ()))]
    h_bhvt, read_bh2 = kernel_call(
        functools.partial(_kernel, queries=queries, heads=heads, summarized=summaries is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(batch,),
            in_specs=[
                pl.BlockSpec((1, heads, key_dim, queries), lambda b, *_: (b, 0, 0, 0)),
                *(in_hbm for _ in arrays),
            ],
            out_specs=[
                pl.BlockSpec((1, heads, value_dim, queries), lambda b, *_: (b, 0, 0, 0)),
                pl.BlockSpec((1, heads, 2), lambda b, *_: (b, 0, 0), memory_space=pltpu.SMEM),
            ],
            scratch_shapes=buffers,
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, value_dim, queries), jnp.float32),
            jax.ShapeDtypeStruct((batch, heads, 2), jnp.int32),
        ],
        name="screening_decode",
    )(*scalars, q.astype(jnp.float32).transpose(0, 2, 3, 1), *arrays)
    return h_bhvt.transpose(0, 3, 1, 2), read_bh2


def _chunk_slots(queries: int) -> int:
    """Slots whose similarities are computed at once: as many as the registers of all chips hold."""
    return 512 if queries <= 2 else 256


class _Step(NamedTuple):
    """One span of one tile; `tile` is one past the last when there are no more."""

    tile: Array
    span: Array


def _kernel(
    positions_ref, length_ref, start_ref, offset_ref, size_ref, window_ref, width_ref,
    q_ref, keys_ref, values_ref, *refs, queries, heads, summarized,
):  # fmt: skip
    if summarized:
        summary_refs, refs = refs[:3], refs[3:]
        *refs, lower_buffer, upper_buffer, radius_buffer, may_ref, summary_done = refs
        summary_buffers = (lower_buffer, upper_buffer, radius_buffer)
    (
        h_ref, read_ref, key_buffer, value_buffer, alpha_ref, best_ref, relevance_ref, sum_ref,
        copied_ref, wanted_ref, accepted_ref, key_done, value_done,
    ) = refs  # fmt: skip
    chunk_slots = _chunk_slots(queries)
    reads_per_chunk = chunk_slots // KEY_SLOTS
    row = pl.program_id(0)
    length, start = length_ref[row], start_ref[row]
    fits_a_span = keys_ref.shape[-1] >= _SPAN  # else such a copy could not even be written down

    def live(tile):
        return jnp.minimum(size_ref[tile], length)

    def base(step):
        return pl.multiple_of(
            (jax.lax.div(offset_ref[step.tile], _SPAN) + step.span) * _SPAN, _SPAN
        )

    def spans(tile):
        """At least one, so that every tile's result is written."""
        end = offset_ref[tile] + jnp.maximum(live(tile), 1)
        return jax.lax.div(end - 1, _SPAN) - jax.lax.div(offset_ref[tile], _SPAN) + 1

    def following(step):
        more = step.span + 1 < spans(jnp.minimum(step.tile, heads - 1))
        return _Step(jnp.where(more, step.tile, step.tile + 1), jnp.where(more, step.span + 1, 0))

    def summary_copies(step, side):
        first = pl.multiple_of(jax.lax.div(base(step), BLOCK_SLOTS), _LANES)
        return [
            pltpu.make_async_copy(
                ref.at[row, :, pl.ds(first, _LANES)], buffer.at[side], summary_done.at[side]
            )
            for ref, buffer in zip(summary_refs, summary_buffers, strict=True)
        ]

    def key_copy(step, side, read):
        first = pl.multiple_of(base(step) + read * KEY_SLOTS, KEY_SLOTS)
        return pltpu.make_async_copy(
            keys_ref.at[row, :, pl.ds(first, KEY_SLOTS)],
            key_buffer.at[side, :, pl.ds(pl.multiple_of(read * KEY_SLOTS, KEY_SLOTS), KEY_SLOTS)],
            key_done.at[side],
        )

    def in_span(chunk):
        return pl.ds(pl.multiple_of(chunk * chunk_slots, chunk_slots), chunk_slots)

    def in_chunk(part):
        return pl.ds(pl.multiple_of(part * VALUE_SLOTS, VALUE_SLOTS), VALUE_SLOTS)

    def value_copy(first, part):
        at = pl.multiple_of(first + part * VALUE_SLOTS, VALUE_SLOTS)
        return pltpu.make_async_copy(
            values_ref.at[row, :, pl.ds(at, VALUE_SLOTS)],
            value_buffer.at[part],
            value_done.at[part],
        )

    def chunks_of(step):
        """First and end of the chunks of the span that the ring's live part lies in."""
        begin = offset_ref[step.tile] - base(step)
        end = begin + live(step.tile)
        return (
            jax.lax.div(jnp.maximum(begin, 0), chunk_slots),
            jax.lax.div(jnp.minimum(end, _SPAN) + chunk_slots - 1, chunk_slots),
        )

    def reads_summaries(tile):
        return live(tile) >= SUMMARIES_FROM

    def whole_key_copy(step, side):
        return pltpu.make_async_copy(
            keys_ref.at[row, :, pl.ds(base(step), _SPAN)], key_buffer.at[side], key_done.at[side]
        )

    def request_summaries(step, side):
        if summarized:
            there = step.tile < heads

            @pl.when(there & reads_summaries(jnp.where(there, step.tile, 0)))
            def _():
                for copy in summary_copies(step, side):
                    copy.start()

    def count_reads_that_may(may):
        """Into scalar memory: how many summaries of each read may accept, several to a number.

        A sum over lanes that ends in a scalar takes some 200 cycles, so there must be few.
        """
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, _LANES), 1)
        read = jax.lax.div(lane, KEY_SLOTS // BLOCK_SLOTS)
        unit = jax.lax.shift_left(jnp.ones_like(read), jax.lax.rem(read, _PACKED) * _BITS)
        weighted = may * unit.astype(jnp.float32)
        sums = [
            jnp.sum(jnp.where(jax.lax.div(read, _PACKED) == i, weighted, 0))
            for i in range(_READS // _PACKED)
        ]
        for i, packed in enumerate(sums):
            may_ref[i] = packed.astype(jnp.int32)

    def request_keys(step, side):
        """Start copying the step's keys, as far as the ring and the summaries want them."""
        tile = step.tile

        @pl.when(step.span == 0)
        def _():
            read_ref[0, tile, 0] = 0
            read_ref[0, tile, 1] = 0

        if summarized:

            @pl.when(reads_summaries(tile))
            def _():
                for copy in summary_copies(step, side):
                    copy.wait()

            lower, upper, radius = (ref[side] for ref in summary_buffers)
            may = jnp.full((1, _LANES), ~reads_summaries(tile))
            for t in range(queries):
                q = q_ref[0, tile, :, t : t + 1]
                bound = similarity_bound(q, lower, upper, radius, axis=0)
                may |= may_accept(bound, width_ref[tile])
            count_reads_that_may(may.astype(jnp.float32))
        begin, end = offset_ref[tile], offset_ref[tile] + live(tile)
        whole = fits_a_span & (base(step) >= begin) & (base(step) + _SPAN <= end)
        some = begin < end
        if summarized:
            counted = [may_ref[i] for i in range(_READS // _PACKED)]
            whole &= functools.reduce(jnp.logical_and, [x == _ALL_MAY for x in counted])
            some &= functools.reduce(jnp.add, counted) > 0
        copied_ref[side] = jnp.where(whole, _WHOLE, jnp.where(some, _PARTS, _NOTHING))

        if fits_a_span:

            @pl.when(whole)
            def _():
                whole_key_copy(step, side).start()
                read_ref[0, tile, 0] += _SPAN
                for read in range(_READS):
                    wanted_ref[side, read] = 1

        @pl.when(some & ~whole)
        def _():
            request_parts(step, side)

    def request_parts(step, side):
        tile = step.tile
        begin, end = offset_ref[tile], offset_ref[tile] + live(tile)

        @_each(chunks_of(step), reads_per_chunk)
        def _(read):
            first = base(step) + read * KEY_SLOTS
            wanted = (first < end) & (first + KEY_SLOTS > begin)
            if summarized:
                packed = may_ref[jax.lax.div(read, _PACKED)]
                count = jax.lax.shift_right_logical(packed, jax.lax.rem(read, _PACKED) * _BITS)
                wanted &= (count & (2**_BITS - 1)) > 0
            wanted_ref[side, read] = wanted.astype(jnp.int32)

            @pl.when(wanted)
            def _():
                key_copy(step, side, read).start()
                read_ref[0, tile, 0] += KEY_SLOTS

    def compute(step, side):
        tile = step.tile

        @pl.when(step.span == 0)
        def _():
            sum_ref[...] = jnp.zeros_like(sum_ref)

        @pl.when(copied_ref[side] != _NOTHING)
        def _():
            compute_span(step, side)

        @pl.when(step.span == spans(tile) - 1)
        def _():
            for t in range(queries):
                h_ref[0, tile, :, t : t + 1] = jnp.sum(sum_ref[t], axis=1, keepdims=True)

    def compute_span(step, side):
        if fits_a_span:

            @pl.when(copied_ref[side] == _WHOLE)
            def _():
                whole_key_copy(step, side).wait()

        @pl.when(copied_ref[side] == _PARTS)
        def _():
            @_each(chunks_of(step), reads_per_chunk)
            def _(read):
                @pl.when(wanted_ref[side, read] != 0)
                def _():
                    key_copy(step, side, read).wait()

        best_ref[...] = jnp.zeros_like(best_ref)

        @each_wanted_chunk(step, side)
        def _(chunk, wanted):
            screen(step, side, chunk, wanted)

        @pl.when(jnp.max(best_ref[...]) > 0)
        def _():
            @each_wanted_chunk(step, side)
            def _(chunk, wanted):
                del wanted
                collect(step, chunk)

    def each_wanted_chunk(step, side):
        def run(body):
            @_each(chunks_of(step))
            def _(chunk):
                first = chunk * reads_per_chunk
                wanted = [wanted_ref[side, first + i] for i in range(reads_per_chunk)]
                pl.when(functools.reduce(jnp.add, wanted) > 0)(lambda: body(chunk, wanted))

        return run

    def reads_of(step, chunk):
        """For each query, which slots of the chunk it may read, and their distances."""
        tile = step.tile
        size = size_ref[tile]
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, chunk_slots), 1)
        slot = base(step) + chunk * chunk_slots - offset_ref[tile] + lane
        position = slot_positions(slot, length, size, ring_head(length, size))
        window = window_ref[tile]
        return [
            readable(slot, position, positions_ref[row, t], live(tile), start, window)
            for t in range(queries)
        ]

    def screen(step, side, chunk, wanted):
        """The chunk's trimmed similarities, and their maximum over the chunks so far."""
        tile = step.tile
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, chunk_slots), 1)
        k = key_buffer[side, :, in_span(chunk)].astype(jnp.float32)
        # Parts of the buffer that no copy has filled hold anything.
        here = functools.reduce(
            lambda rest, i: jnp.where(lane < (i + 1) * KEY_SLOTS, wanted[i], rest),
            reversed(range(reads_per_chunk - 1)),
            jnp.full_like(lane, wanted[-1]),
        )
        for t, (may_read, _) in enumerate(reads_of(step, chunk)):
            s = jnp.sum(q_ref[0, tile, :, t : t + 1] * k, axis=0, keepdims=True)
            trimmed = jnp.maximum(1 - (1 - s) / width_ref[tile], 0)
            alpha = jnp.where(may_read & (here != 0), trimmed, 0)
            alpha_ref[t : t + 1, in_span(chunk)] = alpha
            best_ref[...] = jnp.maximum(best_ref[...], alpha)

    def collect(step, chunk):
        """Add the chunk's accepted values."""
        tile = step.tile
        first = base(step) + chunk * chunk_slots
        alpha = alpha_ref[:, in_span(chunk)]
        # All sums over lanes before the first branch, so that they overlap.
        some = [
            jnp.max(alpha[:, i : i + VALUE_SLOTS]) > 0 for i in range(0, chunk_slots, VALUE_SLOTS)
        ]
        for part, accepted in enumerate(some):
            accepted_ref[part] = accepted.astype(jnp.int32)

        @_each((0, len(some)))
        def _(part):
            @pl.when(accepted_ref[part] != 0)
            def _():
                value_copy(first, part).start()
                read_ref[0, tile, 1] += VALUE_SLOTS

        for t, read in enumerate(reads_of(step, chunk)):
            trimmed = alpha[t : t + 1]
            weight = trimmed * trimmed * half_cosine(read[1], window_ref[tile])
            relevance_ref[t : t + 1, :] = jnp.where(trimmed > 0, weight, 0)

        @_each((0, len(some)))
        def _(part):
            @pl.when(accepted_ref[part] != 0)
            def _():
                value_copy(first, part).wait()
                v = value_buffer[part].astype(jnp.float32)
                for t in range(queries):
                    sum_ref[t] += relevance_ref[t : t + 1, in_chunk(part)] * v

    first = _Step(jnp.int32(0), jnp.int32(0))
    request_summaries(first, 0)
    request_keys(first, 0)
    request_summaries(following(first), 1)

    def advance(carry):
        step, side = carry
        upcoming = following(step)

        @pl.when(upcoming.tile < heads)
        def _():
            request_keys(upcoming, 1 - side)
            request_summaries(following(upcoming), side)

        compute(step, side)
        return upcoming, 1 - side

    jax.lax.while_loop(lambda carry: carry[0].tile < heads, advance, (first, jnp.int32(0)))


def _each(bounds, scale=1):
    """Decorator that runs its function for every index in scale * [first, end)."""
    first, end = bounds

    def run(body):
        jax.lax.fori_loop(first * scale, end * scale, lambda i, _: body(i), None)

    return run


def _check(q, keys, values) -> None:
    check_for_kernels(q, keys, values)
    for name, size in (("K", q.shape[-1]), ("V", values.shape[-1])):
        if size % 16:
            raise NotImplementedError(f"{name} must be a multiple of 16, got {size}")
    if keys.shape[1] % KEY_SLOTS:
        raise NotImplementedError(
            f"S must be a multiple of {KEY_SLOTS}, got {keys.shape[1]}: make the buffer longer"
        )
