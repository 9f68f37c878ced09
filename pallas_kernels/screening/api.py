"""The public screening op."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.common import dispatch
from pallas_kernels.common.arguments import (
    array,
    check_heads,
    check_not_negative,
    check_precision,
    optional_array,
)
from pallas_kernels.common.sharding import shard_op
from pallas_kernels.screening.chunked import screening_chunked
from pallas_kernels.screening.pallas_gpu import screening_pallas_gpu
from pallas_kernels.screening.pallas_tpu import screening_pallas_tpu
from pallas_kernels.screening.reference import screening_reference

_AVAILABLE = {
    "reference": screening_reference,
    "chunked": screening_chunked,
    "pallas_tpu": screening_pallas_tpu,
    "pallas_gpu": screening_pallas_gpu,
}


def screening(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H V"],
    window: Float[Array, " H"],
    width: Float[Array, " H"],
    segment_ids: Int[Array, "B N"] | None = None,
    *,
    gap: int | Int[Array, ""] | None = None,
    implementation: str | Sequence[str] | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "B T H V"]:
    """Screening (Multiscreen, arXiv:2604.01178 v3, eq. 9-12), before TanhNorm.

        s_ij  = q_i . k_j
        alpha = max(1 - (1 - s_ij) / width, 0)^2            zero iff s_ij <= 1 - width
        m     = (cos(pi (i - j) / window) + 1) / 2          at 0 <= i - j < window, else zero
        h_i   = sum_j alpha m v_j                           not normalised over j

    Every key is judged alone: one that fails contributes exactly nothing, and gets exactly zero
    gradient. A query that accepts no key gives a zero row.

    Args:
        q, k: unit length over K, position encoding (MiPE) already applied. S >= T tokens have keys
            and values; the queries are those of the last T, unless there is a gap.
        v: unit length over V.
        window: in tokens, > 1; may be infinite. Per head. NaN gives NaN.
        width: in (0, 1), the acceptance width (the v3 sign: a key lives iff q.k > 1 - width).
            Windows and widths outside are refused where their values can be seen, which is outside
            jit (fetching these few numbers waits for the device). Inside, they mean nothing.
        segment_ids: N = S; documents count from 1; 0 is padding, which reads nothing and is read by
            nothing. Without it each row is one document. With a gap [B, S + T], of the keys and
            then of the queries.
        gap: tokens between the last key and the first query, >= 0; may be traced. Keys and queries
            are of other tokens then, S of any length. Since h is a plain sum over keys, that of a
            long sequence is the sum of what its parts give (see `parallel`).
        implementation: "reference", "chunked", "pallas_tpu", "pallas_gpu", a sequence of names, or
            None: the platform's kernel, and "chunked" where there is none or it does not support
            the arguments. A name never falls back: NotImplementedError.
        precision: of the products. None is the backend's default, except for "reference", which
            is always at the highest.

    Returns:
        [B, T, H, V] in the dtype of v. Similarities, trim, mask and sums are in
        `promote_types(dtype, float32)`. Differentiable in q, k, v, window, width,
        once and in reverse mode: only "reference" has `jax.jvp` and the gradient of a gradient.

    Under a mesh (`jax.set_mesh`) every device computes its own rows and heads, and with S = T and
    no gap its own tokens (see `parallel`).

    Cost: "chunked" visits only blocks of keys inside each head's window: about
    sum_h min(window_h, T / 2) * T pairs at 2 (K + V) FLOPs, memory linear in T. "reference" visits
    and holds all H T^2.
    """
    given = (window, width, segment_ids, gap)
    named = {"q": q, "k": k, "v": v, "window": window, "width": width}
    q, k, v, window, width = (array(name, x) for name, x in named.items())
    segment_ids, gap = optional_array("segment_ids", segment_ids), optional_array("gap", gap)
    check_precision(precision)
    _check(q, k, v, window, width, segment_ids, gap)
    _check_values(*given)
    # No distance lies inside a NaN window, so it would reject every key and look healthy.
    width = jnp.where(jnp.isnan(window), jnp.nan, width)
    kwargs = {} if implementation == "reference" or precision is None else {"precision": precision}
    op = partial(dispatch.run, "screening", _AVAILABLE, implementation, **kwargs)
    in_axes = ("b.h.", "b.h.", "b.h.", "h", "h", "b.", "")
    return shard_op(op, in_axes, "b.h.", q, k, v, window, width, segment_ids, gap)


def _check(q, k, v, window, width, segment_ids, gap) -> None:
    same = q.ndim == k.ndim == 4 and (*q.shape[:1], *q.shape[2:]) == (*k.shape[:1], *k.shape[2:])
    if gap is not None and (gap.shape != () or not jnp.issubdtype(gap.dtype, jnp.integer)):
        raise ValueError(f"gap must be an integer, got {gap.dtype}{list(gap.shape)}")
    if same and v.ndim == 4 and 0 in (q.shape[0], *q.shape[2:], v.shape[3]):
        raise ValueError(f"q, k and v must not have an empty axis, got {q.shape}, {v.shape}")
    if not same or q.shape[1] < 1 or k.shape[1] < (q.shape[1] if gap is None else 1):
        raise ValueError(
            "q must be [B,T,H,K] and k [B,S,H,K] of the same B, H and K, with 1 <= T <= S (with a "
            f"gap 1 <= T and 1 <= S); got {q.shape} and {k.shape}"
        )
    if v.ndim != 4 or v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v must be [B,S,H,V] with B,S,H = {k.shape[:3]}, got {v.shape}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must be of a floating dtype, got {x.dtype}")
    for name, x in (("window", window), ("width", width)):
        if x.shape != (q.shape[2],):
            raise ValueError(f"{name} must be [H] = ({q.shape[2]},), got {x.shape}")
    tokens = (k.shape[0], k.shape[1] + (0 if gap is None else q.shape[1]))
    if segment_ids is not None and segment_ids.shape != tokens:
        shape = "[B,S]" if gap is None else "[B,S+T]"
        raise ValueError(f"segment_ids must be {shape} = {tokens}, got {segment_ids.shape}")
    if segment_ids is not None and not jnp.issubdtype(segment_ids.dtype, jnp.integer):
        raise ValueError(f"segment_ids must be integers, got {segment_ids.dtype}")


def _check_values(window, width, segment_ids, gap) -> None:
    """Checks these as they were given: under jit a constant can be seen, but not a copy of it."""
    check_heads("window", window, lambda x: x <= 1, "> 1 token")
    check_heads("width", width, lambda x: (x <= 0) | (x >= 1), "in (0, 1)")
    check_not_negative("segment_ids", segment_ids)
    check_not_negative("gap", gap)
