"""The two GPU kernels of the linear family: a walk over chunks that carries states, and back.

A chunk is to a state S [K,V] what `ChunkMaps` says: tokens read of it, and it moves on.

    y = sum_l weights_l (reads S_l)     S_l' = through S_l - writes^T (erases S_l)
                                        written = writes^T updates

A program walks over all chunks, of one head and a block of its values: states do not mix values.
Without levels the one state stays in registers. With levels chunk n reads and moves on the states
whose bit is set in `reads[n]`; then `target[n]` becomes the sum of what the chunk writes and of
those moved states that are not above it, which are empty from then on. Nothing is written where
`target[n]` is -1. These states lie in memory that only their program touches.

The backward walk carries the states' cotangents. It needs the states before every chunk, which the
forward walk keeps in the operands' dtype, as they are multiplied.

All use of Triton by the linear family is in this file.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.common import dispatch
from pallas_kernels.common.gpu import compute_capability
from pallas_kernels.common.kernel_call import kernel_call
from pallas_kernels.common.pallas import pl, plgpu

CHUNK = 64  # tokens of a chunk
_LEAST_CAPABILITY = 80


class ChunkMaps(NamedTuple):
    """Chunks as maps of states; operands of products share a dtype, numbers are float32.

    Attributes:
        reads, writes: [B,T,E,K], E the heads or the groups that share them.
        updates: [B,T,H,V].
        erases: [B,T,H,K]; None if nothing is erased.
        weights: [B,H,J,T] of J states; None if all are one.
        through: [B,H,N].
    """

    reads: Any  # of kernels, refs to what a program sees of them
    writes: Any
    updates: Any
    erases: Any
    weights: Any
    through: Any


class Schedule(NamedTuple):
    """Of the levels of N chunks: bits of states, and a state, int32 [B,N]."""

    reads: Any
    target: Any


class Sizes(NamedTuple):
    """Of a program: values that it takes, keys of a product, warps, stages of its pipeline, and the
    least values that it could take."""

    values: int
    keys: int
    warps: int
    stages: int
    least: int = 16


# Most values of a program with which no kernel spills registers, of SSD and of the delta rule, then
# of both with levels; `experiments.bench.compile_gpu_linear` compiles all of them. None: all spill.
_MOST_VALUES = {
    ("bfloat16", 16): (64, 64, 32, 32),
    ("bfloat16", 32): (64, 64, 32, 32),
    ("bfloat16", 64): (64, 64, 32, 32),
    ("bfloat16", 128): (32, 32, 32, 32),
    ("bfloat16", 192): (32, 32, 32, 32),
    ("bfloat16", 256): (32, 16, 32, 32),
    ("float32", 16): (16, 16, 16, 16),
    ("float32", 32): (16, 16, 16, 16),
    ("float32", 64): (16, 16, 16, 16),
    ("float32", 128): (16, None, 16, None),
}
# With levels before sm_90, whose products take more registers: by dtype, K, and whether it is the
# delta rule. Other blocks of values than these spill; None: all do.
_LEVELS_80 = {
    ("bfloat16", 128, True): Sizes(32, keys=32, warps=8, stages=1, least=32),
    ("bfloat16", 192, True): Sizes(16, keys=64, warps=8, stages=1),
    ("bfloat16", 256, True): Sizes(16, keys=64, warps=8, stages=1),
    ("bfloat16", 256, False): Sizes(32, keys=64, warps=4, stages=1, least=32),
    ("float32", 64, True): None,
}


def padded(key_dim: int, value_dim: int, dtype: Any, delta: bool, levels: bool) -> tuple[int, int]:
    """K and V of kernels that take these, zeros added, with operands of `dtype`.

    Raises:
        NotImplementedError: where K is greater than in any kernel that spills no registers, and for
            a GPU older than sm_80.
    """
    capability = compute_capability() or _LEAST_CAPABILITY
    if capability < _LEAST_CAPABILITY:
        raise NotImplementedError(
            f"the GPU's compute capability is {capability}; needs {_LEAST_CAPABILITY} or newer"
        )
    name = jnp.dtype(dtype).name
    found = {k: _most(k, name, delta, levels) for n, k in _MOST_VALUES if n == name}
    found = {k: size for k, size in found.items() if size is not None}
    if key_dim > max(found):
        rule = "the delta rule" if delta else "SSD"
        raise NotImplementedError(f"K is {key_dim}; {name} {rule} takes K up to {max(found)}")
    key_dim = min(k for k in found if k >= key_dim)
    least = found[key_dim].least
    return key_dim, pl.cdiv(value_dim, least) * least


def _most(key_dim, name, delta, levels) -> Sizes | None:
    """With the most values a program can take; None if there is no such kernel."""
    most = _MOST_VALUES[name, key_dim][delta + 2 * levels]
    if most is None:
        return None
    before_90 = (compute_capability() or _LEAST_CAPABILITY) < 90
    if levels and before_90 and (name, key_dim, delta) in _LEVELS_80:
        return _LEVELS_80[name, key_dim, delta]
    # States of levels are loaded after they were stored: a pipeline would load them too early.
    stages = 2 if name == "bfloat16" and not levels else 1
    warps = 8 if name == "float32" and key_dim > 64 and not levels else 4
    return Sizes(most, keys=64, warps=warps, stages=stages)


def sizes(key_dim: int, value_dim: int, dtype: Any, delta: bool, levels: bool) -> Sizes:
    """Those of both kernels on this machine's GPU, for sizes that `padded` gives."""
    size = _most(key_dim, jnp.dtype(dtype).name, delta, levels)
    assert size is not None
    values = next(n for n in (64, 32, 16) if n <= size.values and value_dim % n == 0)
    return size._replace(values=values)


def _sizes(maps, schedule):
    key_dim, value_dim = maps.reads.shape[3], maps.updates.shape[3]
    delta, levels = maps.erases is not None, schedule is not None
    return sizes(key_dim, value_dim, maps.updates.dtype, delta, levels)


def forward(
    maps: ChunkMaps, states: Float[Array, "B H J K V"], schedule: Schedule | None, keep: bool
) -> tuple[Array, ...]:
    """y [B,T,H,V], the last states, and with `keep` those before every chunk, [B,H,N,J,K,V].

    States that a chunk does not read are kept as zeros.
    """
    results = {
        "values": jax.ShapeDtypeStruct(maps.updates.shape, jnp.float32),
        "states": jax.ShapeDtypeStruct(states.shape, jnp.float32),
    }
    if keep:
        shape = (*maps.through.shape, *states.shape[2:])
        results["kept"] = jax.ShapeDtypeStruct(shape, maps.updates.dtype)
    kernel = _forward if schedule is None else _forward_levels
    return _run(kernel, maps, schedule, {"states": states}, results)


def backward(
    maps: ChunkMaps,
    schedule: Schedule | None,
    kept: Float[Array, "B H N J K V"],
    dy: Float[Array, "B T H V"],
    dlast: Float[Array, "B H J K V"],
) -> tuple[Array, ...]:
    """Cotangents of updates, through (in parts [B,H,N,P]), states, and of what chunks wrote.

    The last are [B,H,N,K,V]. With levels and erases those of the moved states follow,
    [B,H,N,J,K,V], zeros where a chunk moves none.
    """
    key_dim, value_dim = dlast.shape[3:]
    blocks = value_dim // _sizes(maps, schedule).values
    results = {
        "values": jax.ShapeDtypeStruct(maps.updates.shape, jnp.float32),
        "sums": jax.ShapeDtypeStruct((*maps.through.shape, blocks), jnp.float32),
        "states": jax.ShapeDtypeStruct(dlast.shape, jnp.float32),
        "written": jax.ShapeDtypeStruct((*kept.shape[:3], key_dim, value_dim), kept.dtype),
    }
    if schedule is not None and maps.erases is not None:
        results["kept"] = jax.ShapeDtypeStruct(kept.shape, kept.dtype)
    kernel = _backward if schedule is None else _backward_levels
    inputs = {"kept": kept, "values": dy, "states": dlast}
    return _run(kernel, maps, schedule, inputs, results)


def _run(kernel, maps, schedule, inputs, results):
    """The kernel for every block of values, head and row; inputs and results by their layout."""
    batch, _, heads, value_dim = maps.updates.shape
    key_dim = maps.reads.shape[3]
    size = _sizes(maps, schedule)
    sharing = heads // maps.reads.shape[2]
    layouts = ChunkMaps("keys", "keys", "values", "head keys", "numbers", "numbers")
    map_specs = ChunkMaps(
        *(
            None if x is None else _spec(layout, x, size.values, sharing)
            for layout, x in zip(layouts, maps, strict=True)
        )
    )

    def specs(arrays):
        return [_spec(layout, x, size.values, sharing) for layout, x in arrays.items()]

    results = kernel_call(
        partial(kernel, parts=powers_of_two(key_dim, size.keys)),
        grid=(value_dim // size.values, heads, batch),
        in_specs=[
            map_specs,
            jax.tree.map(lambda x: _spec("masks", x, size.values, sharing), schedule),
            specs(inputs),
        ],
        out_specs=specs(results),
        out_shape=list(results.values()),
        compiler_params=plgpu.CompilerParams(num_warps=size.warps, num_stages=size.stages),
        name=f"linear{kernel.__name__}",
    )(maps, schedule, list(inputs.values()))
    return tuple(results)


def _spec(layout, x, values, sharing):
    """What a program sees of an array."""
    if layout == "masks":
        return pl.BlockSpec((None, x.shape[1]), lambda i, h, b: (b, 0))
    if layout in ("keys", "head keys"):
        sharing = sharing if layout == "keys" else 1
        shape = (None, x.shape[1], None, x.shape[3])
        return pl.BlockSpec(shape, lambda i, h, b: (b, 0, lax.div(h, sharing), 0))
    if layout == "values":
        return pl.BlockSpec((None, x.shape[1], None, values), lambda i, h, b: (b, 0, h, i))
    inside = [0] * (x.ndim - 3)
    if layout == "numbers":
        return pl.BlockSpec((None, None, *x.shape[2:]), lambda i, h, b: (b, h, 0, *inside))
    last = None if layout == "sums" else values
    return pl.BlockSpec((None, None, *x.shape[2:-1], last), lambda i, h, b: (b, h, *inside, i))


# -- one chunk and one state, in parts of keys -----------------------------------------------------


def powers_of_two(key_dim: int, most: int) -> list[slice]:
    """Slices of keys: Triton's arrays have powers of two."""
    parts, start = [], 0
    while start < key_dim:
        size = min(most, 1 << ((key_dim - start).bit_length() - 1))
        parts.append(slice(start, start + size))
        start += size
    return parts


_CONTRACTED = {"nn": ((1,), (0,)), "tn": ((0,), (0,))}


def _dot(form, a, b):
    """The float32 product of operand a, plain ("n") or transposed ("t"), and b."""
    precision = None
    if a.dtype == jnp.float32:
        precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        if dispatch.interpretation():
            precision = lax.Precision.HIGHEST
    return lax.dot_general(
        a,
        b.astype(a.dtype),
        (_CONTRACTED[form], ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def _time(n):
    return pl.ds(n * CHUNK, CHUNK)


def _read(ref, n, parts, state):
    """Rows of chunk n times the state, [C,V]."""
    products = [_dot("nn", ref[_time(n), part], x) for part, x in zip(parts, state, strict=True)]
    return sum(products[1:], products[0])


def _onto(ref, n, parts, x):
    """Rows of chunk n transposed times x [C,V], in parts."""
    return [_dot("tn", ref[_time(n), part], x) for part in parts]


def _left(maps, n, state):
    return [x * maps.through[n] for x in state]


def _add(state, other):
    return [a + b for a, b in zip(state, other, strict=True)]


def _load(ref, index, parts):
    return [ref[(*index, part)] for part in parts]


def _store(ref, index, parts, state):
    for part, x in zip(parts, state, strict=True):
        ref[(*index, part)] = x.astype(ref.dtype)


def _copy(source, target, parts):
    """All states."""

    @pl.loop(0, source.shape[0])
    def _(j):
        for part in parts:
            target[j, part] = source[j, part]


def _weigh(maps, j, n, x):
    """x [C,V] times the weights of state j."""
    return x if maps.weights is None else x * maps.weights[j, _time(n)][:, None]


def _zeros(ref, parts):
    return [jnp.zeros((part.stop - part.start, ref.shape[-1]), jnp.float32) for part in parts]


def meet():
    """What threads of a program stored, others may load from here on, and the other way round."""
    if not dispatch.interpretation():
        plgpu.debug_barrier()


# -- forward ---------------------------------------------------------------------------------------


def _forward(maps, schedule, inputs, y_ref, last_ref, kept_ref=None, *, parts):
    (first_ref,) = inputs

    def chunk(n, state):
        if kept_ref is not None:
            _store(kept_ref, (n, 0), parts, state)
        y_ref[_time(n)] = _weigh(maps, 0, n, _read(maps.reads, n, parts, state))
        updates = maps.updates[_time(n)]
        if maps.erases is not None:
            updates = updates - _read(maps.erases, n, parts, state)
        return _add(_left(maps, n, state), _onto(maps.writes, n, parts, updates))

    state = _load(first_ref, (0,), parts)
    state = lax.fori_loop(0, maps.through.shape[0], chunk, state)
    _store(last_ref, (0,), parts, state)


def _forward_levels(maps, schedule, inputs, y_ref, last_ref, kept_ref=None, *, parts):
    (first_ref,) = inputs
    levels = first_ref.shape[0]
    _copy(first_ref, last_ref, parts)

    def chunk(n, carry):
        bits, target = schedule.reads[n], schedule.target[n]

        def move(j, y):
            seen, erased = 0, 0
            for part in parts:
                state = last_ref[j, part]
                if kept_ref is not None:
                    kept_ref[n, j, part] = state.astype(kept_ref.dtype)
                seen += _dot("nn", maps.reads[_time(n), part], state)
                if maps.erases is not None:
                    erased += _dot("nn", maps.erases[_time(n), part], state)
            for part in parts:
                moved = last_ref[j, part] * maps.through[n]
                if maps.erases is not None:
                    moved -= _dot("tn", maps.writes[_time(n), part], erased)
                _leave(last_ref, j, target, part, moved)
            return y + _weigh(maps, j, n, seen)

        def skip(j, y):
            if kept_ref is not None:
                _store(kept_ref, (n, j), parts, _zeros(kept_ref, parts))

            @pl.when(j == target)
            def _():
                _store(last_ref, (j,), parts, _zeros(last_ref, parts))

            return y

        def level(back, y):
            meet()
            j = levels - 1 - back
            return lax.cond((bits >> j) & 1 == 1, partial(move, j), partial(skip, j), y)

        y = jnp.zeros((CHUNK, y_ref.shape[1]), jnp.float32)
        y_ref[_time(n)] = lax.fori_loop(0, levels, level, y)

        @pl.when(target >= 0)
        def _():
            meet()
            for part in parts:
                written = _dot("tn", maps.writes[_time(n), part], maps.updates[_time(n)])
                last_ref[target, part] = last_ref[target, part] + written

        return carry

    lax.fori_loop(0, maps.through.shape[0], chunk, 0)


def _leave(last_ref, j, target, part, moved):
    """Stores a moved state, or adds it to the target, which is above it and has been moved."""
    joins = j < target

    @pl.when(joins)
    def _():
        last_ref[target, part] = last_ref[target, part] + moved

    last_ref[j, part] = jnp.where(joins, 0, moved)


# -- backward --------------------------------------------------------------------------------------


def _product_sum(state, other):
    return sum(jnp.sum(a.astype(jnp.float32) * b) for a, b in zip(state, other, strict=True))


def _backward(
    maps, schedule, inputs, dupdates_ref, dthrough_ref, dfirst_ref, dwritten_ref, *, parts
):
    kept_ref, dy_ref, dlast_ref = inputs
    chunks = maps.through.shape[0]

    def chunk(back, dstate):
        n = chunks - 1 - back
        _store(dwritten_ref, (n,), parts, dstate)
        dthrough_ref[n] = _product_sum(_load(kept_ref, (n, 0), parts), dstate)
        dupdates = _read(maps.writes, n, parts, dstate)
        dupdates_ref[_time(n)] = dupdates
        dy = _weigh(maps, 0, n, dy_ref[_time(n)])
        dstate = _add(_left(maps, n, dstate), _onto(maps.reads, n, parts, dy))
        if maps.erases is None:
            return dstate
        return _add(dstate, _onto(maps.erases, n, parts, -dupdates))

    dstate = _load(dlast_ref, (0,), parts)
    dstate = lax.fori_loop(0, chunks, chunk, dstate)
    _store(dfirst_ref, (0,), parts, dstate)


def _backward_levels(
    maps,
    schedule,
    inputs,
    dupdates_ref,
    dthrough_ref,
    dfirst_ref,
    dwritten_ref,
    dmoved_ref=None,
    *,
    parts,
):
    kept_ref, dy_ref, dlast_ref = inputs
    levels, chunks = dlast_ref.shape[0], maps.through.shape[0]
    _copy(dlast_ref, dfirst_ref, parts)

    def chunk(back, carry):
        n = chunks - 1 - back
        bits, target = schedule.reads[n], schedule.target[n]
        meet()
        dupdates = 0
        for part in parts:
            dwritten = dfirst_ref[jnp.maximum(target, 0), part]
            dwritten = jnp.where(target >= 0, dwritten, 0)
            dwritten_ref[n, part] = dwritten.astype(dwritten_ref.dtype)
            dupdates += _dot("nn", maps.writes[_time(n), part], dwritten)
        dupdates_ref[_time(n)] = dupdates

        def move(j, dthrough):
            above = jnp.maximum(j, target)
            dseen = 0
            for part in parts:
                dmoved = dfirst_ref[above, part]
                if dmoved_ref is not None:
                    dmoved_ref[n, j, part] = dmoved.astype(dmoved_ref.dtype)
                    dseen += _dot("nn", maps.writes[_time(n), part], dmoved)
            dy = _weigh(maps, j, n, dy_ref[_time(n)])
            for part in parts:
                dmoved = dfirst_ref[above, part]
                dthrough += jnp.sum(dmoved * kept_ref[n, j, part].astype(jnp.float32))
                dstate = dmoved * maps.through[n]
                dstate += _dot("tn", maps.reads[_time(n), part], dy)
                if dmoved_ref is not None:
                    dstate -= _dot("tn", maps.erases[_time(n), part], dseen)
                dfirst_ref[j, part] = dstate
            return dthrough

        def skip(j, dthrough):
            if dmoved_ref is not None:
                _store(dmoved_ref, (n, j), parts, _zeros(dmoved_ref, parts))

            # What was in a state that is written anew does not matter.
            @pl.when(j == target)
            def _():
                _store(dfirst_ref, (j,), parts, _zeros(dfirst_ref, parts))

            return dthrough

        def level(j, dthrough):
            meet()
            return lax.cond((bits >> j) & 1 == 1, partial(move, j), partial(skip, j), dthrough)

        dthrough_ref[n] = lax.fori_loop(0, levels, level, jnp.float32(0))
        return carry

    lax.fori_loop(0, chunks, chunk, 0)
