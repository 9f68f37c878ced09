"""The two TPU kernels of the linear family: a walk over chunks that carries states, and back.

A step of the grid takes a segment of chunks, of a block of heads of one group; states stay in
vector memory from one segment to the next. Without levels a head has one state. With levels chunk n
reads and moves on the states whose bit is set in `reads[n]`; then `target[n]` becomes the sum of
what the chunk writes, of all states below, and of itself if its bit is set. Nothing is written
where `target[n]` is -1.

Back, the states before every chunk of a segment are found again from those before the segment.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.common.kernel_call import kernel_call
from pallas_kernels.common.pallas import pl, pltpu
from pallas_kernels.common.tpu import kernel_memory
from pallas_kernels.linear_attention.tpu_chunks import (
    CHUNK,
    FROM_START,
    STATE_SCALES,
    SUBLANES,
    Cotangents,
    Maps,
    Plan,
    Tokens,
    cotangent_scratch,
    dot,
    each_head,
    fill_maps,
    fill_state_maps,
    in_parts,
    local_backward,
    maps_scratch,
    over_features,
    row_of,
    scaled_pairs,
    through,
)

_MAPS = len(Maps._fields) - 1  # that are scratch


def forward(plan: Plan, keep: bool, reads, target, q, k, v, rows, solve, states):
    """y [B,H,V,T] and the last states [B,H,J,V,K]; with `keep`, those before every segment too,
    rounded like the operands of products."""
    outputs = [_output(plan, "values", v.dtype), _output(plan, "last", jnp.float32)]
    if keep:
        outputs.append(_output(plan, "kept", plan.operand))
    inputs = {"keys": [q, k], "values": [v], "rows": [rows], "solve": [solve], "first": [states]}
    return _call("forward", plan, _forward_kernel, inputs, outputs, reads, target)


def backward(plan: Plan, reads, target, q, k, v, rows, solve, kept, dy, dlast):
    """Cotangents of q, k, v, rows, solve and states."""
    outputs = [
        _output(plan, "keys", q.dtype),
        _output(plan, "keys", k.dtype),
        _output(plan, "values", v.dtype),
        _output(plan, "rows", jnp.float32),
        *([_output(plan, "solve", solve.dtype)] if plan.delta else []),
        _output(plan, "last", jnp.float32),
    ]
    inputs = {
        "keys": [q, k], "values": [v, dy], "rows": [rows], "solve": [solve], "kept": [kept],
        "first": [dlast],
    }  # fmt: skip
    return _call("backward", plan, _backward_kernel, inputs, outputs, reads, target)


def memory(plan: Plan, name: str) -> int:
    """Bytes of vector memory that "forward" or "backward" needs.

    Two copies of every block of an array, on the way and in use, and the scratch: what the
    compiler counts, or more where an array is a single block.
    """
    counts = {
        "forward": {"keys": 2, "values": 2, "rows": 1, "solve": 1},
        "backward": {"keys": 4, "values": 3, "rows": 2, "solve": 2},
    }[name]
    counts |= {"solve": counts["solve"] * plan.delta, "first": 1, "kept": 1, "last": 1}
    total = sum(_padded_bytes(x.shape, x.dtype) for x in _scratch(plan, name))
    for layout, count in counts.items():
        dtype = jnp.float32 if layout in ("rows", "first", "last") else plan.operand
        block: Any = _spec(plan, layout, name == "backward").block_shape
        shape = [n for n in block if n is not None]
        total += (1 if layout in ("first", "last") else 2) * count * _padded_bytes(shape, dtype)
    return total


def _padded_bytes(shape, dtype):
    """Bytes of an array whose last two axes fill whole registers."""
    *outer, rows, lanes = shape
    size = jnp.dtype(dtype).itemsize
    tile = SUBLANES * 4 // size
    return math.prod(outer) * pl.cdiv(rows, tile) * tile * pl.cdiv(lanes, CHUNK) * CHUNK * size


def _scratch(plan, name):
    if name == "forward":
        sums = pltpu.VMEM((plan.block, plan.value_dim, CHUNK), jnp.float32)
        return [_states_scratch(plan, plan.blocks), *maps_scratch(plan), sums]
    return [
        _states_scratch(plan, plan.segment),
        _states_scratch(plan, plan.blocks),
        *maps_scratch(plan),
        *cotangent_scratch(plan, plan.segment * CHUNK),
    ]


def _state(plan):
    return plan.value_dim, plan.key_dim


def _states_scratch(plan, count):
    return pltpu.VMEM((count, plan.block, plan.states, *_state(plan)), jnp.float32)


# -- what surrounds a kernel -----------------------------------------------------------------------


def _call(name, plan, kernel, inputs, outputs, reads, target):
    """Runs a kernel over (batch, group, segment, block of heads); `inputs` by their layout."""
    back = name == "backward"
    arrays = [(layout, x) for layout, xs in inputs.items() for x in xs if x is not None]
    layouts = {layout: _spec(plan, layout, back) for layout in (*dict(arrays), "last", "kept")}
    return kernel_call(
        partial(kernel, plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(plan.batch, plan.groups // plan.keys, plan.segments, plan.blocks),
            in_specs=[layouts[layout] for layout, _ in arrays],
            out_specs=[layouts[layout] for layout, _ in outputs],
            scratch_shapes=_scratch(plan, name),
        ),
        out_shape=[shape for _, shape in outputs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=kernel_memory(),
        ),
        name=f"linear_{name}",
    )(reads, target, *(x for _, x in arrays))


def _spec(plan, layout, back):
    """The block of an array that a step of the grid sees; back, segments come in reverse."""
    time = plan.segment * CHUNK
    final = plan.segments - 1

    def head(g, block):
        return g * plan.blocks + block

    def at(segment):
        return final - segment if back else segment

    def tokens(rows):
        return pl.BlockSpec(
            (None, plan.block, rows, time), lambda b, g, s, h, *_: (b, head(g, h), 0, at(s))
        )

    states = (None, plan.block, plan.states, *_state(plan))
    if layout == "keys":
        return pl.BlockSpec(
            (None, plan.keys, plan.key_dim, time), lambda b, g, s, h, *_: (b, g, 0, at(s))
        )
    if layout == "first":  # of the segment that comes first; later ones keep what they have
        return pl.BlockSpec(
            states,
            lambda b, g, s, h, *_: (b, head(g, jnp.where(s == 0, h, plan.blocks - 1)), 0, 0, 0),
            pipeline_mode=pl.Buffered(1),
        )
    if layout == "last":  # written by the segment that comes last
        return pl.BlockSpec(
            states,
            lambda b, g, s, h, *_: (b, head(g, jnp.where(s == final, h, 0)), 0, 0, 0),
            pipeline_mode=pl.Buffered(1),
        )
    if layout == "kept":
        return pl.BlockSpec(
            (None, plan.block, None, *states[2:]),
            lambda b, g, s, h, *_: (b, head(g, h), at(s), 0, 0, 0),
        )
    return tokens({"values": plan.value_dim, "rows": plan.rows, "solve": CHUNK}[layout])


def _output(plan, layout, dtype):
    batch, heads, length = plan.batch, plan.heads, plan.chunks * CHUNK
    shapes = {
        "keys": (batch, plan.groups, plan.key_dim, length),
        "values": (batch, heads, plan.value_dim, length),
        "rows": (batch, heads, plan.rows, length),
        "solve": (batch, heads, CHUNK, length),
        "last": (batch, heads, plan.states, *_state(plan)),
        "kept": (batch, heads, plan.segments, plan.states, *_state(plan)),
    }
    return layout, jax.ShapeDtypeStruct(shapes[layout], dtype)


def _time(chunk):
    start = chunk * CHUNK
    return pl.ds(start if isinstance(chunk, int) else pl.multiple_of(start, CHUNK), CHUNK)


def _tokens(refs: Tokens, chunk) -> Tokens:
    """Of one chunk of a segment."""
    at = _time(chunk)
    return Tokens(*(None if x is None else x.at[:, :, at] for x in refs))


def _tokens_and_rows(refs: Tokens, chunk, maps) -> Tokens:
    """The same, with rows copied."""
    tokens = _tokens(refs, chunk)
    maps.rows[...] = tokens.rows[...]
    return tokens._replace(rows=maps.rows)


def _score(plan, inputs, maps, block):
    """The scores of all chunks, once for all blocks of heads that share them."""

    @pl.when(block == 0)
    def _():
        for chunk in range(plan.segment):
            tokens = _tokens(inputs, chunk)
            for e in range(plan.keys):
                maps.scores[chunk, e] = dot(plan, "tn", tokens.k[e], tokens.q[e])


def _masks(plan, reads_ref, target_ref, row, n):
    return (reads_ref[row, n], target_ref[row, n]) if plan.levels else (None, None)


# -- forward ---------------------------------------------------------------------------------------


def _forward_kernel(plan, reads_ref, target_ref, *refs):
    inputs, refs = _split(refs, 4 + plan.delta)
    (first_ref, y_ref, last_ref, *kept, states_ref), scratch = _split(refs, -_MAPS - 1)
    inputs = Tokens(*inputs, *[None] * (not plan.delta))
    maps, sum_ref = Maps._make((*scratch[:-1], reads_ref)), scratch[-1]
    row, segment, block = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    states = states_ref.at[block]

    @pl.when(segment == 0)
    def _():
        _copy(plan, first_ref, states)

    for kept_ref in kept:
        _copy(plan, states, kept_ref)

    _score(plan, inputs, maps, block)

    @pl.loop(0, plan.segment)
    def _(chunk):
        tokens = _tokens_and_rows(inputs, chunk, maps)
        here = maps._replace(scores=maps.scores.at[chunk])
        fill_maps(plan, tokens, here)

        @each_head(plan, maps)
        def _(h):
            sum_ref[h] = dot(plan, "nn", tokens.v[h], scaled_pairs(plan, maps)[h])

        bits, target = _masks(plan, reads_ref, target_ref, row, segment * plan.segment + chunk)
        _advance(plan, tokens, here, states, states, bits, target, sum_ref)
        y_ref[:, :, _time(chunk)] = sum_ref[...].astype(y_ref.dtype)

    _copy(plan, states, last_ref)


def _copy(plan, source, target):
    """States, a few registers at a time."""

    @pl.loop(0, plan.states)
    def _(level):
        for h in range(plan.block):

            def copy(features, h=h):
                target[h, level, features] = source[h, level, features].astype(target.dtype)

            in_parts(plan.value_dim, copy)


def _split(refs, count):
    return refs[:count], refs[count:]


def _advance(plan, tokens, maps, before, after, bits, target, sum_ref):
    """The states after a chunk from those before; what tokens read of them, added to `sum_ref`."""
    if not plan.levels:
        _move_on(plan, tokens, maps, before, after, 0, sum_ref, write=True)
        return

    @pl.loop(0, plan.states)
    def _(level):
        @pl.when((bits >> level) & 1 == 1)
        def _():
            _move_on(plan, tokens, maps, before, after, level, sum_ref, write=False)

    @pl.when(target >= 0)
    def _():
        @pl.when((bits >> target) & 1 == 0)
        def _():
            after[:, target] = jnp.zeros_like(after[:, target])

        _write(plan, tokens, maps, after, target)

        @pl.loop(0, target)
        def _(level):
            for h in range(plan.block):

                def add(features, h=h):
                    after[h, target, features] += after[h, level, features]

                in_parts(plan.value_dim, add)


def _write(plan, tokens, maps, after, target):
    """Adds what a chunk writes."""
    if not plan.delta:
        for e, heads in _groups(plan):
            _fill_written(plan, tokens, maps, e, heads)

    @each_head(plan, maps)
    def _(h):
        if plan.delta:
            maps.moved[h] = dot(plan, "nt", maps.updates[h], maps.writes[h])
        after[h, target] += maps.moved[h]


def _fill_written(plan, tokens, maps, e, heads):
    """What a chunk of SSD writes to the states of a group's heads, in `maps.moved`."""
    written = dot(plan, "nt", _stack(maps.updates[heads]), tokens.k[e])
    maps.moved[heads] = _heads(plan, written)


def _move_on(plan, tokens, maps, before, after, level, sum_ref, write):
    """One state of every head over a chunk, what the chunk writes included with `write`."""
    reads = sum_ref is not None
    if not plan.delta:
        seen = maps.seen.at[:, :, :CHUNK]
        for e, heads in _groups(plan):
            if reads:
                seen[heads] = _heads(
                    plan, dot(plan, "nn", _stack(before[heads, level]), tokens.q[e])
                )
            if write:
                _fill_written(plan, tokens, maps, e, heads)

        @each_head(plan, maps)
        def _(h):
            rows = tokens.rows.at[h]
            if reads:
                sum_ref[h] += seen[h] * _weight(plan, rows, level)
            state = before[h, level] * through(rows)
            after[h, level] = state + maps.moved[h] if write else state

        return

    @each_head(plan, maps)
    def _(h):
        seen, rows = maps.seen.at[h], tokens.rows.at[h]
        if reads:
            seen[...] = dot(plan, "nn", before[h, level], maps.ends[h])
            read = seen[:, :CHUNK]
            sum_ref[h] += read * _scale(rows, level) if plan.levels else read
        else:
            seen[:, CHUNK:] = dot(plan, "nn", before[h, level], maps.ends[h, :, CHUNK:])
        update = -seen[:, CHUNK:]
        if write:
            update = update + maps.updates[h]
        maps.moved[h] = dot(plan, "nt", update, maps.writes[h])
        after[h, level] = before[h, level] * through(rows) + maps.moved[h]


def _groups(plan):
    """Each group of a block, and its heads."""
    return [(e, slice(e * plan.sharing, (e + 1) * plan.sharing)) for e in range(plan.keys)]


def _stack(x):
    """[r,V,K] -> [r V,K]: as one operand of a product that heads share."""
    return x.reshape(-1, x.shape[-1])


def _heads(plan, x):
    """The inverse of `_stack`."""
    return x.reshape(plan.sharing, -1, x.shape[-1])


def _scale(rows, level):
    return row_of(rows, STATE_SCALES + level)


def _weight(plan, rows, level):
    """Of a state of SSD in the results, [1,C]."""
    from_start = row_of(rows, FROM_START)
    return from_start * _scale(rows, level) if plan.levels else from_start


# -- backward --------------------------------------------------------------------------------------


def _backward_kernel(plan, reads_ref, target_ref, *refs):
    (q_ref, k_ref, v_ref, dy_ref, rows_ref), refs = _split(refs, 5)
    solve_ref, refs = _split(refs, int(plan.delta))
    (kept_ref, dlast_ref), refs = _split(refs, 2)
    outputs, refs = _split(refs, 4 + plan.delta)
    (dfirst_ref, history_ref, dstates_ref), refs = _split(refs, 3)
    maps, cotangents = _split(refs, _MAPS)
    without = [None] * (not plan.delta)
    inputs = Tokens(q_ref, k_ref, v_ref, rows_ref, *solve_ref, *without)
    outputs, maps = Tokens(*outputs, *without), Maps._make((*maps, reads_ref))
    sums = Cotangents(*cotangents)
    row, step, block = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    first_chunk = (plan.segments - 1 - step) * plan.segment
    dstates = dstates_ref.at[block]

    @pl.when(step == 0)
    def _():
        _copy(plan, dlast_ref, dstates)

    @pl.when(block == 0)
    def _():
        sums.q[...] = jnp.zeros_like(sums.q)
        sums.k[...] = jnp.zeros_like(sums.k)
        sums.scores[...] = jnp.zeros_like(sums.scores)

    _score(plan, inputs, maps, block)
    _copy(plan, kept_ref, history_ref.at[0])

    @pl.loop(0, plan.segment - 1)
    def _(chunk):
        tokens = _tokens_and_rows(inputs, chunk, maps)
        fill_state_maps(plan, tokens, maps)
        bits, target = _masks(plan, reads_ref, target_ref, row, first_chunk + chunk)
        before, after = history_ref.at[chunk], history_ref.at[chunk + 1]
        _advance(plan, tokens, maps, before, after, bits, target, None)

    @pl.loop(0, plan.segment)
    def _(back):
        chunk = plan.segment - 1 - back
        at = _time(chunk)
        tokens, out = _tokens_and_rows(inputs, chunk, maps), _tokens(outputs, chunk)
        here = maps._replace(scores=maps.scores.at[chunk])
        d = sums._replace(
            q=sums.q.at[:, :, at], k=sums.k.at[:, :, at], scores=sums.scores.at[chunk]
        )
        dy, states = dy_ref.at[:, :, at], history_ref.at[chunk]
        bits, target = _masks(plan, reads_ref, target_ref, row, first_chunk + chunk)
        for x in (d.ends, d.writes, d.through, d.rows):
            x[...] = jnp.zeros_like(x)
        fill_maps(plan, tokens, here)
        _retreat(plan, tokens, here, dy, states, dstates, bits, target, d)
        local_backward(plan, tokens, here, dy, d, out)
        out.rows[...] = d.rows[...]

    @pl.when(block == plan.blocks - 1)
    def _():
        @pl.loop(0, plan.segment)
        def _(chunk):
            tokens, at = _tokens(inputs, chunk), _time(chunk)
            for e in range(plan.keys):
                sums.q[e, :, at] += dot(plan, "nn", tokens.k[e], sums.scores[chunk, e])
                sums.k[e, :, at] += dot(plan, "nt", tokens.q[e], sums.scores[chunk, e])

        outputs.q[...] = sums.q[...].astype(outputs.q.dtype)
        outputs.k[...] = sums.k[...].astype(outputs.k.dtype)

    _copy(plan, dstates, dfirst_ref)


def _retreat(plan, tokens, maps, dy, states, dstates, bits, target, d):
    """The cotangents of the states before a chunk, and of the maps of the chunk."""
    back = (plan, tokens, maps)
    if not plan.levels:
        _write_back(*back, dstates, 0, d)
        _move_back(*back, dy, states, dstates, 0, d)
        return

    @pl.when(target < 0)
    def _():
        d.updates[...] = jnp.zeros_like(d.updates)

    @pl.when(target >= 0)
    def _():
        _write_back(*back, dstates, target, d)

        @pl.loop(0, target)
        def _(level):
            for h in range(plan.block):

                def copy(features, h=h):
                    dstates[h, level, features] = dstates[h, target, features]

                in_parts(plan.value_dim, copy)

    @pl.loop(0, plan.states)
    def _(level):
        @pl.when((bits >> level) & 1 == 1)
        def _():
            _move_back(*back, dy, states, dstates, level, d)

    # A document that begins here knows nothing of the states before.
    @pl.when((bits == 0) & (target >= 0))
    def _():
        dstates[...] = jnp.zeros_like(dstates)


def _write_back(plan, tokens, maps, dstates, target, d):
    """Cotangents of updates and writes, from that of the state that took them."""
    if not plan.delta:
        for e, heads in _groups(plan):
            dstate = _stack(dstates[heads, target])
            d.updates[heads] = _heads(plan, dot(plan, "nn", dstate, tokens.k[e]))
            d.k[e] += dot(plan, "tn", dstate, _stack(maps.updates[heads]))
        return

    @each_head(plan, maps)
    def _(h):
        d.updates[h] = dot(plan, "nn", dstates[h, target], maps.writes[h])

    @each_head(plan, maps)
    def _(h):
        d.writes[h] = dot(plan, "tn", dstates[h, target], maps.updates[h])


def _move_back(plan, tokens, maps, dy, states, dstates, level, d):
    """Through one state's way over a chunk: `_move_on` without `write`, reversed."""
    if not plan.delta:
        _move_back_ssd(plan, tokens, maps, dy, states, dstates, level, d)
        return

    @each_head(plan, maps)
    def _(h):
        maps.seen[h] = dot(plan, "nn", states[h, level], maps.ends[h])

    @each_head(plan, maps, together=False)
    def _(h):
        product = maps.product.at[h, : plan.key_dim, :CHUNK]
        product[...] = dot(plan, "tn", dstates[h, level], maps.seen[h, :, CHUNK:])
        d.writes[h] -= product[...]

    for h in range(plan.block):
        _read_back(plan, tokens, maps, dy, level, d, h)

    @each_head(plan, maps)
    def _(h):
        maps.seen[h, :, CHUNK:] = -dot(plan, "nn", dstates[h, level], maps.writes[h])

    for half in (slice(None, CHUNK), slice(CHUNK, None)):

        @each_head(plan, maps, together=False)
        def _(h, half=half):
            product = maps.product.at[h, : plan.key_dim, half]
            product[...] = dot(plan, "tn", states[h, level], maps.seen[h, :, half])
            d.ends[h, :, half] += product[...]

    @each_head(plan, maps)
    def _(h):
        maps.moved[h] = dot(plan, "nt", maps.seen[h], maps.ends[h])

    @each_head(plan, maps)
    def _(h):
        _through_back(plan, tokens, maps, states, dstates, level, d, h)


def _read_back(plan, tokens, maps, dy, level, d, h):
    """In place of what tokens read of a state of the delta rule comes the cotangent of that."""
    scale = pl.ds(STATE_SCALES + level, 1)

    def part(features):
        dseen = dy[h, features].astype(jnp.float32)
        if plan.levels:
            d.rows[h, scale] += over_features(maps.seen[h, features, :CHUNK] * dseen)
            dseen = dseen * tokens.rows[h, scale]
        maps.seen[h, features, :CHUNK] = dseen

    in_parts(plan.value_dim, part)


def _through_back(plan, tokens, maps, states, dstates, level, d, h):
    """What is left of the cotangent of a state, and the cotangent of what was left of the state."""
    left = through(tokens.rows.at[h])

    def part(features):
        state, dstate = states[h, level, features], dstates[h, level, features]
        d.through[h, 0:1] += over_features(state * dstate)
        dstates[h, level, features] = dstate * left + maps.moved[h, features]

    in_parts(plan.value_dim, part)


def _move_back_ssd(plan, tokens, maps, dy, states, dstates, level, d):
    seen, dseen = maps.seen.at[:, :, :CHUNK], maps.seen.at[:, :, CHUNK:]
    for e, heads in _groups(plan):
        seen[heads] = _heads(plan, dot(plan, "nn", _stack(states[heads, level]), tokens.q[e]))

    @each_head(plan, maps)
    def _(h):
        rows = tokens.rows.at[h]
        dweight = over_features(seen[h] * dy[h])
        if plan.levels:
            d.rows[h, pl.ds(STATE_SCALES + level, 1)] = dweight * row_of(rows, FROM_START)
            dweight = dweight * _scale(rows, level)
        d.rows[h, FROM_START : FROM_START + 1] += dweight
        dseen[h] = dy[h] * _weight(plan, rows, level)

    for e, heads in _groups(plan):
        d.q[e] += dot(plan, "tn", _stack(states[heads, level]), _stack(dseen[heads]))
        maps.moved[heads] = _heads(plan, dot(plan, "nt", _stack(dseen[heads]), tokens.q[e]))

    @each_head(plan, maps)
    def _(h):
        _through_back(plan, tokens, maps, states, dstates, level, d, h)
