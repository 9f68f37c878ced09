"""The ops of the linear family on sequences divided among the devices of a mesh axis.

Each function is the op of its name, called inside `jax.shard_map` on a device's shard: T
consecutive tokens of every row, as many on every device, in the order of the axis.

    op = partial(parallel.ssd, axis_name="seq", return_state=True)
    rows, whole = jax.P(None, "seq"), jax.P()
    op = jax.shard_map(op, in_specs=rows, out_specs=(rows, whole), check_vma=False)
    y, state = op(q, k, v, g)

To the state before it a shard is a linear map of few numbers, whatever T is:

    S' = through S + written          through: exp(g_1 + ... + g_T) or, for the delta rules, [K, K]

Every device finds its own, they are gathered once, and every device passes the initial state on
from shard to shard up to its own (LASP-2, arXiv:2502.07563, section 3; the delta rules need the
matrix besides). Tokens stay where they are. Both `through` and what tokens read of the state are
products of the transitions in between, so no decay is ever divided by another.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.common.documents import document_starts, documents, gates
from pallas_kernels.common.numerics import accumulation_dtype
from pallas_kernels.linear_attention import api
from pallas_kernels.linear_attention.api import NormalizedState


def linear_attention(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    normalize: bool = False,
    *,
    axis_name: str,
    initial_state: Float[Array, "B H K V"] | NormalizedState | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
    precision: jax.lax.PrecisionLike = None,
    **settings: Any,
) -> tuple[Float[Array, "B T H V"], Any]:
    """`linear_attention` of a divided sequence; arguments, cost and errors as in `ssd` here."""
    if initial_state is not None and isinstance(initial_state, tuple) != normalize:
        raise ValueError(
            "initial_state must be a NormalizedState with normalize and an array without, got "
            f"a {type(initial_state).__name__}"
        )
    run = partial(
        _additive, k=k, g=None, axis_name=axis_name, return_state=return_state,
        segment_ids=segment_ids, precision=precision,
    )  # fmt: skip
    op = partial(api.linear_attention, q, k, v, normalize, **settings)
    if not normalize:
        return run(op, v=v, state=initial_state)

    # The sum of the keys is one more column of the state, that of a value that is always one.
    def columns(initial_state: Array, **given: Any) -> tuple[Array, Any]:
        return op(initial_state=_normalized(initial_state), **given)

    if isinstance(initial_state, tuple):
        values, keys = (jnp.asarray(x) for x in initial_state)
        initial_state = jnp.concatenate([values, keys[..., None]], axis=-1)
    ones = jnp.ones_like(v[..., :1])
    y, state = run(columns, v=jnp.concatenate([v, ones], axis=-1), state=initial_state)
    return y, None if state is None else _normalized(state)


def retention(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, " H"] | None = None,
    *,
    axis_name: str,
    initial_state: Float[Array, "B H K V"] | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
    precision: jax.lax.PrecisionLike = None,
    **settings: Any,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"] | None]:
    """`retention` of a divided sequence; arguments, cost and errors as in `ssd` here."""
    if g is None:
        g = api.retention_decays(v.shape[2], accumulation_dtype(v))
    return _additive(
        partial(api.retention, q, k, v, g, **settings), k, v, jnp.broadcast_to(g, v.shape[:3]),
        initial_state, axis_name=axis_name, return_state=return_state, segment_ids=segment_ids,
        precision=precision,
    )  # fmt: skip


def ssd(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"],
    *,
    axis_name: str,
    initial_state: Float[Array, "B H K V"] | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
    precision: jax.lax.PrecisionLike = None,
    **settings: Any,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"] | None]:
    """`ssd` of a divided sequence.

    Args:
        q, k, v, g: this device's T tokens, T >= 1 and the same on all devices.
        axis_name: of the mesh, inside `jax.shard_map(check_vma=False)`.
        initial_state: before the whole sequence, the same on all devices.
        return_state: also return the state after the whole sequence, the same on all devices.
        segment_ids: of this device's tokens. A document may begin in any shard and go on in any
            number of them; it goes on where the ids of its tokens, padding apart, are the same.
        settings: scale, chunk_size and implementation.

    The result, dtypes, errors and the other arguments are those of the op. Differentiable in every
    float input.

    Cost: 2 T H K V FLOPs beside the op's, for `written`; the op itself runs once, from the state
    before the shard. (To run it from zero first and to add what tokens read of that state
    afterwards takes as many, rounds twice, and keeps more for the backward pass.) From n devices
    every one gets n B H (K V + 1) numbers of float32, and gives back as many backwards; to pass
    them on takes 2 n B H K V FLOPs.
    """
    return _additive(
        partial(api.ssd, q, k, v, g, **settings), k, v, g, initial_state, axis_name=axis_name,
        return_state=return_state, segment_ids=segment_ids, precision=precision,
    )  # fmt: skip


def delta_rule(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    beta: Float[Array, "B T H"],
    *,
    axis_name: str,
    initial_state: Float[Array, "B H K V"] | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
    precision: jax.lax.PrecisionLike = None,
    **settings: Any,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"] | None]:
    """`delta_rule` of a divided sequence; arguments, cost and errors as in `gated_delta_rule`."""
    return _delta(
        partial(api.delta_rule, q, k, beta=beta, **settings), k, v, initial_state,
        axis_name=axis_name, return_state=return_state, segment_ids=segment_ids,
        precision=precision,
    )  # fmt: skip


def gated_delta_rule(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    *,
    axis_name: str,
    initial_state: Float[Array, "B H K V"] | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
    precision: jax.lax.PrecisionLike = None,
    **settings: Any,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"] | None]:
    """`gated_delta_rule` of a divided sequence; arguments as in `ssd` here.

    Cost: 2 T H (2 C K + 3 K K + K V) FLOPs beside the op's, see `delta_shard`. (A pass for the
    summary alone, without q, and then the op from the state before the shard, would together take
    2 T H (C^2 / 3 + C V + K (V - K)) more, and the summary a form of its own.) From n devices every
    one gets n B H K (V + K) numbers of float32, and gives back as many backwards; to pass them on
    takes 2 n B H K K V FLOPs, which is little while n K is well below T. Training keeps B T H K
    numbers more.
    """
    return _delta(
        partial(api.gated_delta_rule, q, k, g=g, beta=beta, **settings), k, v, initial_state,
        axis_name=axis_name, return_state=return_state, segment_ids=segment_ids,
        precision=precision,
    )  # fmt: skip


class Shard(NamedTuple):
    """What tokens make of the state before them: through S + written.

    Attributes:
        through: [B,H], or [B,H,K,K] of the delta rules; H may be 1 for all heads.
        written: [B,H,K,V].
    """

    through: Array
    written: Array


def additive_shard(
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T #H"],
    precision: jax.lax.PrecisionLike,
) -> Shard:
    """2 T H K V FLOPs. Inputs in the dtype to compute in, padding zero, g as from `gates`."""
    batch, length, groups, _ = k.shape
    after = jnp.pad(g[:, 1:], ((0, 0), (0, 1), (0, 0)))
    to_end = jnp.exp(jax.lax.cumsum(after, axis=1, reverse=True))
    v_btgrv = (v * to_end[..., None]).reshape(batch, length, groups, -1, v.shape[-1])
    written = jnp.einsum("btgk,btgrv->bgrkv", k, v_btgrv, precision=precision)
    return Shard(jnp.exp(jnp.sum(g, axis=1)), written.reshape(batch, -1, *written.shape[3:]))


def delta_shard(
    op: Callable[..., tuple[Array, Any]], v: Float[Array, "B T H V"], key_dim: int
) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H K"], Shard]:
    """A shard of a delta rule: its result from a state of zeros, what its tokens read of a state
    before them (the rows q_t^T A_t ... A_1), and its summary.

    All are one run of the op, whose columns of values do not know of each other: K of them are
    zero and start from the unit matrix. So the factors of chunks are made once for everything, and
    a kernel of the op serves here too. K more columns cost 2 T H (2 C K + 3 K K) FLOPs.
    """
    batch, _, heads, value_dim = v.shape
    dtype = accumulation_dtype(v)  # as wide, the result is rounded once, after its last sum
    unit = jnp.broadcast_to(jnp.eye(key_dim, dtype=dtype), (batch, heads, key_dim, key_dim))
    y, state = op(
        v=jnp.pad(v.astype(dtype), ((0, 0), (0, 0), (0, 0), (0, key_dim))),
        initial_state=jnp.pad(unit, ((0, 0), (0, 0), (0, 0), (value_dim, 0))),
        return_state=True,
    )
    shard = Shard(through=state[..., value_dim:], written=state[..., :value_dim])
    return y[..., :value_dim], y[..., value_dim:], shard


def pass_on(through: Array, x: Float[Array, "B H *X"]) -> Float[Array, "B H *X"]:
    """through S for states [B,H,...,K,V], or through itself of an earlier shard.

    At the highest precision: later shards have the errors of all before them.
    """
    if through.ndim == 2:
        return through.reshape(*through.shape, *[1] * (x.ndim - 2)) * x
    return jnp.einsum("bhkm,bh...mv->bh...kv", through, x, precision="highest")


def _additive(
    op, k, v, g, state, *, axis_name, return_state, segment_ids, precision
) -> tuple[Array, Array | None]:  # fmt: skip
    """The op from the state before the shard, which follows from summaries alone."""
    api.check_inputs(k, k, v, g=g, segment_ids=segment_ids)
    docs = None if segment_ids is None else documents(segment_ids)
    dtype = accumulation_dtype(k, v)
    k, v, g = (None if x is None else x.astype(dtype) for x in (k, v, g))
    k, v, g = api.without_padding(docs, k, v, g)
    shard = additive_shard(k, v, gates(g, docs, like=v), precision)
    state = _initial_state(state, shard)
    before, last = _states(shard, state, segment_ids, axis_name)
    y, _ = op(initial_state=before, segment_ids=segment_ids, precision=precision)
    return y, last if return_state else None


def _delta(
    op, k, v, state, *, axis_name, return_state, segment_ids, precision
) -> tuple[Array, Array | None]:  # fmt: skip
    """The op from a state of zeros, and then what is read of the state before the shard."""
    api.check_inputs(k, k, v, segment_ids=segment_ids)
    op = partial(op, segment_ids=segment_ids, precision=precision)
    y, reads, shard = delta_shard(op, v, k.shape[-1])
    state = _initial_state(state, shard)
    before, last = _states(shard, state, segment_ids, axis_name)
    y = y + jnp.einsum("bthk,bhkv->bthv", reads, before, precision=precision)
    return y.astype(v.dtype), last if return_state else None


def _initial_state(state: Any, shard: Shard) -> Float[Array, "B H K V"]:
    if state is None:
        return jnp.zeros_like(shard.written)
    state = jnp.asarray(state).astype(shard.written.dtype)
    if state.shape != shard.written.shape:
        raise ValueError(
            f"initial_state must be [B,H,K,V] = {shard.written.shape}, got {state.shape}"
        )
    return state


def _normalized(state: Float[Array, "B H K W"]) -> NormalizedState:
    return NormalizedState(state[..., :-1], state[..., -1])


def _states(
    shard: Shard,
    state: Float[Array, "B H K V"],
    segment_ids: Int[Array, "B T"] | None,
    axis_name: str,
) -> tuple[Float[Array, "B H K V"], Float[Array, "B H K V"]]:
    """The state before this device's shard, as its first tokens may read it, and the last one."""

    def step(carry, xs):
        state, before = carry
        shard, fresh, here = xs
        if fresh is not None:
            state = jnp.where(fresh[:, None, None, None], 0, state)
        before = jnp.where(here, state, before)
        return (pass_on(shard.through, state) + shard.written, before), None

    here = jnp.arange(jax.lax.axis_size(axis_name)) == jax.lax.axis_index(axis_name)
    fresh = None if segment_ids is None else _fresh_shards(segment_ids, axis_name)
    shards = jax.lax.all_gather(shard, axis_name)
    (last, before), _ = jax.lax.scan(step, (state, state), (shards, fresh, here))
    return before, last


def _fresh_shards(segment_ids: Int[Array, "B T"], axis_name: str) -> Bool[Array, "N B"]:
    """Whether the first token of each shard, padding apart, starts a document, but a row's first.

    Only the first and the last id of every shard matter; both are 0 if all of it is padding.
    """
    real = segment_ids != 0
    first = jnp.argmax(real, axis=1)
    last = real.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
    ends = jnp.take_along_axis(segment_ids, jnp.stack([first, last], axis=1), axis=1)
    ends = jax.lax.all_gather(ends, axis_name, axis=1, tiled=True)  # [B,2N]
    return document_starts(documents(ends))[:, ::2].T
