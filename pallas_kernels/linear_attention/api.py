"""The public ops of the linear family."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels.common import dispatch
from pallas_kernels.common.arguments import (
    array,
    check_boolean,
    check_not_negative,
    check_positive_integer,
    check_precision,
    optional_array,
    scale_number,
)
from pallas_kernels.common.documents import Documents, documents, mask_padding
from pallas_kernels.common.numerics import accumulation_dtype
from pallas_kernels.common.sharding import shard_op
from pallas_kernels.linear_attention import pallas_gpu, pallas_tpu
from pallas_kernels.linear_attention.chunked import gated_delta_rule_chunked, ssd_chunked
from pallas_kernels.linear_attention.reference import recurrence

SINGLE_TOKEN = 'a single token is a step of the recurrence, which "chunked" takes'
_NORMALIZER_EPS = 1e-10  # fla's; only a row that reads nothing comes near it


class NormalizedState(NamedTuple):
    """State of normalised linear attention.

    Attributes:
        values: [B,H,K,V], sum of k v^T.
        keys: [B,H,K], sum of k.
    """

    values: Float[Array, "B H K V"]
    keys: Float[Array, "B H K"]


def linear_attention(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    normalize: bool = False,
    *,
    scale: float | None = None,
    initial_state: Float[Array, "B H K V"] | NormalizedState | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
    chunk_size: int = 64,
    implementation: str | Sequence[str] | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Float[Array, "B T H V"], Any]:
    """Causal linear attention (Katharopoulos et al., arXiv:2006.16236, eq. 9).

        S_t = S_{t-1} + k_t v_t^T          z_t = z_{t-1} + k_t
        y_t = scale S_t^T q_t              normalised: S_t^T q_t / (z_t . q_t)

    Apply a feature map to q and k before. The other arguments, the result, cost and errors are
    those of `ssd`, but that `scale=None` is K^-0.5, and that with `normalize` the state is a
    `NormalizedState`.
    """
    check_boolean("normalize", normalize)
    run = partial(
        _run, "linear_attention", _ADDITIVE, q, k, scale=scale, segment_ids=segment_ids,
        chunk_size=chunk_size, implementation=implementation, precision=precision,
        return_state=return_state,
    )  # fmt: skip
    is_pair = isinstance(initial_state, tuple) and len(initial_state) == 2
    if initial_state is not None and is_pair != normalize:
        raise ValueError(
            "initial_state must be a NormalizedState with normalize and an array without, got "
            f"a {type(initial_state).__name__}"
        )
    if not normalize:
        return run(v, None, None, initial_state)
    # The sum of the keys is one more column of the state, that of a value that is always one.
    v = array("v", v)
    wide = v.astype(accumulation_dtype(v))  # one rounding, after the division
    if initial_state is not None:
        values, keys = (array("initial_state", x) for x in initial_state)
        if keys.shape != values.shape[:-1]:
            raise ValueError(
                f"keys of a NormalizedState must be [B,H,K] = {values.shape[:-1]}, got {keys.shape}"
            )
        initial_state = jnp.concatenate([values, keys[..., None]], axis=-1)
    ones = jnp.ones_like(wide[..., :1])
    y, state = run(jnp.concatenate([wide, ones], axis=-1), None, None, initial_state)
    y = (y[..., :-1] / (y[..., -1:] + _NORMALIZER_EPS)).astype(v.dtype)
    return y, None if state is None else NormalizedState(state[..., :-1], state[..., -1])


def retention(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, " H"] | None = None,
    *,
    scale: float | None = None,
    initial_state: Float[Array, "B H K V"] | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
    chunk_size: int = 64,
    implementation: str | Sequence[str] | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"] | None]:
    """Retention (RetNet, arXiv:2307.08621, eq. 6): a decay for each head, the same at all times.

        S_t = exp(g_h) S_{t-1} + k_t v_t^T          y_t = scale S_t^T q_t

    Args:
        g: logarithm of the decay; None is RetNet's log(1 - 2^(-5 - h)) for head h.

    The other arguments, the result, cost and errors are those of `ssd`, but that `scale=None` is
    K^-0.5.
    """
    v = array("v", v)
    if v.ndim != 4:
        raise ValueError(f"v must be [B,T,H,V], got {v.shape}")
    heads = v.shape[2]
    g = retention_decays(heads, accumulation_dtype(v)) if g is None else array("g", g)
    if g.shape != (heads,):
        raise ValueError(f"g must be [H] = ({heads},), got {g.shape}")
    return _run(
        "retention", _ADDITIVE, q, k, v, jnp.broadcast_to(g, v.shape[:3]), None, initial_state,
        scale=scale, segment_ids=segment_ids, chunk_size=chunk_size,
        implementation=implementation, precision=precision, return_state=return_state,
    )  # fmt: skip


def retention_decays(heads: int, dtype: jnp.dtype) -> Float[Array, " H"]:
    """RetNet's g, the fading of each head's state in one token: log(1 - 2^(-5 - h))."""
    return jnp.asarray(np.log1p(-(2.0 ** (-5 - np.arange(heads)))), dtype)


def ssd(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"],
    *,
    scale: float | None = None,
    initial_state: Float[Array, "B H K V"] | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
    chunk_size: int = 64,
    implementation: str | Sequence[str] | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"] | None]:
    """State space duality: linear attention with a decay for each token and head (Mamba-2,
    arXiv:2405.21060, eq. 16; there q is C, k is B and v is dt x).

        S_t = exp(g_t) S_{t-1} + k_t v_t^T          y_t = scale S_t^T q_t

    Args:
        q, k: G groups, H a multiple of G; heads h with one h // (H/G) share a group's.
        v: H heads.
        g: logarithm of the decay, <= 0.
        scale: of q; None is 1.
        initial_state: S before the first token, continued by the row's first document.
        return_state: also return the state after the last token that is not padding.
        segment_ids: documents count from 1; the state starts anew with each, exactly if inputs
            are finite (0 times infinity is NaN). 0 is padding: a zero output, and no effect on any
            state. Without it each row is one document.
        chunk_size: C, of the chunk form; kernels choose their own.
        implementation: "reference" (a scan over tokens), "chunked", "pallas_tpu",
            "pallas_gpu", a sequence of names, or None: the platform's kernel where there is one,
            and otherwise "chunked". A name never falls back: NotImplementedError.
        precision: of the products. None is the backend's default, except for "reference", which
            is always at the highest.

    Returns:
        y [B,T,H,V] in the dtype of v, and the state [B,H,K,V] in `promote_types(dtype, float32)`,
        the dtype of all computation, or None. Differentiable in every float input.

    Under a mesh (`jax.set_mesh`) every device computes its own rows and heads, and its own tokens
    where neither state is given or asked for (see `parallel`).

    Cost: "chunked" takes 2 T H (C K / r + C V + 2 K V) FLOPs forward, r = H / G; memory is linear
    in T.
    """
    return _run(
        "ssd", _ADDITIVE, q, k, v, array("g", g), None, initial_state,
        scale=1.0 if scale is None else scale, segment_ids=segment_ids, chunk_size=chunk_size,
        implementation=implementation, precision=precision, return_state=return_state,
    )  # fmt: skip


def delta_rule(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    beta: Float[Array, "B T H"],
    *,
    scale: float | None = None,
    initial_state: Float[Array, "B H K V"] | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
    chunk_size: int = 64,
    implementation: str | Sequence[str] | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"] | None]:
    """The delta rule (DeltaNet, arXiv:2406.06484, eq. 4): `gated_delta_rule` with g = 0.

    S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T          y_t = scale S_t^T q_t
    """
    return _run(
        "delta_rule", _DELTA, q, k, v, None, array("beta", beta), initial_state,
        scale=scale, segment_ids=segment_ids, chunk_size=chunk_size,
        implementation=implementation, precision=precision, return_state=return_state,
    )  # fmt: skip


def gated_delta_rule(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    *,
    scale: float | None = None,
    initial_state: Float[Array, "B H K V"] | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
    chunk_size: int = 64,
    implementation: str | Sequence[str] | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"] | None]:
    """The gated delta rule (Gated DeltaNet, arXiv:2412.06464, eq. 10).

        S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T
        y_t = scale S_t^T q_t

    Args:
        q, k: keys of unit length, or shorter: the state grows where beta |k|^2 exceeds 2.
        g: logarithm of the decay, <= 0.
        beta: writing strength, in [0, 1], or [0, 2] for negative eigenvalues.
        scale: of q; None is K^-0.5.

    The other arguments, the result and the errors are those of `ssd`.

    Cost: "chunked" takes about 2 T H (C^2 / 3 + C (C + 4 K + 2 V) + 3 K V) FLOPs forward.
    """
    return _run(
        "gated_delta_rule", _DELTA, q, k, v, array("g", g), array("beta", beta), initial_state,
        scale=scale, segment_ids=segment_ids, chunk_size=chunk_size,
        implementation=implementation, precision=precision, return_state=return_state,
    )  # fmt: skip


def repeat_groups(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    repeats = v.shape[2] // q.shape[2]
    return (q, k) if repeats == 1 else (jnp.repeat(q, repeats, 2), jnp.repeat(k, repeats, 2))


def _reference(q, k, v, g, beta, state, docs, *, scale, **unused):
    del unused
    q, k, v, g, beta = widen(q, k, v, g, beta, scale=scale)
    return recurrence(*repeat_groups(q, k, v), v, g, beta, state, docs)


def _ssd(q, k, v, g, beta, state, docs, *, scale, chunk_size, precision):
    del beta
    q, k, v, g, _ = widen(q, k, v, g, None, scale=scale)
    if v.shape[1] == 1:
        return recurrence(*repeat_groups(q, k, v), v, g, None, state, docs, precision)
    return ssd_chunked(q, k, v, g, state, docs, chunk_size, precision)


def _delta(q, k, v, g, beta, state, docs, *, scale, chunk_size, precision):
    q, k, v, g, beta = widen(q, k, v, g, beta, scale=scale)
    q, k = repeat_groups(q, k, v)
    if v.shape[1] == 1:
        return recurrence(q, k, v, g, beta, state, docs, precision)
    return gated_delta_rule_chunked(q, k, v, g, beta, state, docs, chunk_size, precision)


def _by_walk(walk):
    """By a kernel that walks over chunks, of a size of its own, and carries one state."""

    def run(q, k, v, g, beta, state, docs, *, scale, chunk_size, precision):
        del chunk_size
        if v.shape[1] == 1:
            raise NotImplementedError(SINGLE_TOKEN)
        q = scale_queries(q, scale)
        y, states = walk(q, k, v, g, beta, state[:, :, None], docs, None, precision)
        return y, states[:, :, 0]

    return run


_ADDITIVE: dict[str, Callable[..., Any]] = {
    "reference": _reference,
    "chunked": _ssd,
    "pallas_tpu": _by_walk(pallas_tpu.walk),
    "pallas_gpu": _by_walk(pallas_gpu.walk),
}
_DELTA: dict[str, Callable[..., Any]] = _ADDITIVE | {"chunked": _delta}


def _run(
    name, available, q, k, v, g, beta, state, *,
    scale, segment_ids, chunk_size, implementation, precision, return_state,
):  # fmt: skip
    """Check, promote, mask the padding, and run on every device's own rows and heads."""
    q, k, v = array("q", q), array("k", k), array("v", v)
    g, beta = optional_array("g", g), optional_array("beta", beta)
    check_inputs(q, k, v, g=g, beta=beta, segment_ids=segment_ids)
    scale = scale_number(scale)
    check_settings(chunk_size, precision, return_state)
    batch, _, heads, value_dim = v.shape
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dtype = accumulation_dtype(q, k, v)
    shape = (batch, heads, q.shape[3], value_dim)
    state = jnp.zeros(shape, dtype) if state is None else array("initial_state", state)
    if state.shape != shape:
        raise ValueError(f"initial_state must be [B,H,K,V] = {shape}, got {state.shape}")
    state = state.astype(dtype)

    def op(q, k, v, g, beta, state, segment_ids):
        docs = None if segment_ids is None else documents(segment_ids)
        out_dtype = v.dtype
        q, k, v, g, beta = without_padding(docs, q, k, v, g, beta)
        y, state = dispatch.run(
            name, available, implementation, q, k, v, g, beta, state, docs,
            scale=scale, chunk_size=chunk_size, precision=precision,
        )  # fmt: skip
        if docs is not None:
            (y,) = mask_padding(docs.real, y)
        return y.astype(out_dtype), state

    in_axes = ("b.g.", "b.g.", "b.h.", "b.h", "b.h", "bh..", "b.")
    segment_ids = None if segment_ids is None else jnp.asarray(segment_ids)
    y, state = shard_op(op, in_axes, ("b.h.", "bh.."), q, k, v, g, beta, state, segment_ids)
    return y, state if return_state else None


def without_padding(docs: Documents | None, *arrays: Array | None) -> tuple[Any, ...]:
    """The arrays [B,T,...], zero at padding; None stays None."""
    real = None if docs is None else docs.real
    return tuple(None if x is None else mask_padding(real, x)[0] for x in arrays)


def widen(q: Array, k: Array, v: Array, *others: Array | None, scale: float) -> tuple[Any, ...]:
    """All in the dtype to compute in, q scaled; None stays None."""
    dtype = accumulation_dtype(q, k, v)
    more = (None if x is None else x.astype(dtype) for x in others)
    return q.astype(dtype) * scale, k.astype(dtype), v.astype(dtype), *more


def scale_queries(q: Array, scale: float) -> Array:
    """q times scale in its own dtype, rounded once."""
    return (q.astype(accumulation_dtype(q)) * scale).astype(q.dtype)


def check_inputs(q, k, v, *, segment_ids, **per_token) -> None:
    """ValueError naming the array, what was given and what is allowed."""
    if q.ndim != 4 or q.shape != k.shape:
        raise ValueError(f"q and k must share one shape [B,T,G,K], got {q.shape} and {k.shape}")
    if v.ndim != 4 or v.shape[:2] != q.shape[:2]:
        raise ValueError(f"v must be [B,T,H,V] with B,T = {q.shape[:2]}, got {v.shape}")
    if 0 in (*q.shape, *v.shape):
        raise ValueError(f"q and v must not have an empty axis, got {q.shape} and {v.shape}")
    if v.shape[2] % q.shape[2]:
        raise ValueError(
            f"the {v.shape[2]} heads of v must be a multiple of the {q.shape[2]} groups of q and k"
        )
    for name, x in {"q": q, "k": k, "v": v, **per_token}.items():
        if x is not None and not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must be of a floating dtype, got {x.dtype}")
    for name, x in per_token.items():
        if x is not None and x.shape[:3] != v.shape[:3]:
            raise ValueError(f"{name} must be [B,T,H,...] with {v.shape[:3]}, got {x.shape}")
        if x is not None and name in ("g", "beta") and x.ndim != 3:
            raise ValueError(f"{name} must be [B,T,H] = {v.shape[:3]}, got {x.shape}")
    if segment_ids is not None:
        ids = array("segment_ids", segment_ids)
        if ids.shape != q.shape[:2]:
            raise ValueError(f"segment_ids must be [B,T] = {q.shape[:2]}, got {ids.shape}")
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"segment_ids must be integers, got {ids.dtype}")
        check_not_negative("segment_ids", segment_ids)


def check_settings(chunk_size: Any, precision: Any, return_state: Any) -> None:
    """ValueError naming the setting that is none."""
    check_positive_integer("chunk_size", chunk_size)
    check_precision(precision)
    check_boolean("return_state", return_state)
