"""The public causal attention op."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.attention.chunked import attention_chunked
from pallas_kernels.attention.reference import attention_reference
from pallas_kernels.common.arguments import (
    array,
    check_not_negative,
    check_precision,
    optional_array,
    scale_number,
)

IMPLEMENTATIONS = ("reference", "chunked", "cudnn")


def causal_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    segment_ids: Int[Array, "B S"] | None = None,
    *,
    scale: float | None = None,
    implementation: str | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "B T H K"]:
    """Causal softmax attention: y_i = sum_{j <= i} softmax_j(scale q_i . k_j) v_j.

    Heads h and h' with h // (H/G) equal share keys and values (grouped-query attention).

    Args:
        q: H heads; position encoding already applied, as on k. S >= T tokens have keys and values;
            the queries are those of the last T.
        k, v: G groups, H a multiple of G.
        segment_ids: documents count from 1; 0 is padding, which reads nothing (its output is zero)
            and is read by nothing. Without it each row is one document.
        scale: of the scores; None is K^-0.5.
        implementation: "chunked" (XLA, any platform), "cudnn" (NVIDIA's fused kernels: 16-bit
            floats on a GPU, S = T, no segment ids), "reference" (holds the T x S map), or None:
            cudnn where it can run, otherwise chunked. A name never falls back: NotImplementedError.
        precision: of the products; ignored by cudnn.

    Returns:
        [B, T, H, K] in the dtype of v; scores and softmax in `promote_types(dtype, float32)`.
        Differentiable (reverse mode) in q, k, v.

    Cost: "chunked" computes 2 B H T^2 K FLOPs forward (half the full square) and 2.5 times that
    backward; memory is linear in T.
    """
    given, segment_ids = segment_ids, optional_array("segment_ids", segment_ids)
    q, k, v = array("q", q), array("k", k), array("v", v)
    scale = scale_number(scale)
    check_precision(precision)
    _check(q, k, v, segment_ids, implementation)
    check_not_negative("segment_ids", given)
    scale = float(q.shape[-1] ** -0.5) if scale is None else scale
    unsupported = _why_not_cudnn(q, k, segment_ids)
    if implementation == "cudnn" and unsupported:
        raise NotImplementedError(f"causal_attention with implementation 'cudnn': {unsupported}")
    if implementation == "cudnn" or (implementation is None and not unsupported):
        return jax.nn.dot_product_attention(
            q, k, v, scale=scale, is_causal=True, implementation="cudnn"
        )
    if implementation == "reference":
        return attention_reference(q, k, v, segment_ids, scale)
    return attention_chunked(q, k, v, segment_ids, scale, precision)


def _why_not_cudnn(q, k, segment_ids) -> str | None:
    if jax.default_backend() != "gpu":
        return f"needs an NVIDIA GPU, the default device is a {jax.default_backend()}"
    if q.dtype not in (jnp.bfloat16, jnp.float16) or k.dtype != q.dtype:
        return f"needs bfloat16 or float16 inputs of one dtype, got {q.dtype} and {k.dtype}"
    if q.shape[-1] > 128 or q.shape[-1] % 8:
        return f"needs a head dimension of at most 128 divisible by 8, got {q.shape[-1]}"
    if segment_ids is not None:
        return "has no segment ids"
    if q.shape[1] != k.shape[1]:
        return f"needs as many queries as keys, got {q.shape[1]} and {k.shape[1]}"
    return None


def _check(q, k, v, segment_ids, implementation) -> None:
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be None or one of {IMPLEMENTATIONS}, got {implementation!r}"
        )
    if q.ndim != 4 or k.shape != v.shape or k.shape[::3] != q.shape[::3]:
        raise ValueError(
            "q must be [B,T,H,K], k and v [B,S,G,K] with the same B, S, K; "
            f"got {q.shape}, {k.shape}, {v.shape}"
        )
    if not 1 <= q.shape[1] <= k.shape[1]:
        raise ValueError(
            f"q must hold 1 to S = {k.shape[1]} positions, those of the last keys; got {q.shape}"
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(
            f"the {q.shape[2]} heads of q must be a multiple of the {k.shape[2]} groups of k and v"
        )
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must be of a floating dtype, got {x.dtype}")
    if segment_ids is not None and segment_ids.shape != k.shape[:2]:
        raise ValueError(f"segment_ids must be [B,S] = {k.shape[:2]}, got {segment_ids.shape}")
    if segment_ids is not None and not jnp.issubdtype(segment_ids.dtype, jnp.integer):
        raise ValueError(f"segment_ids must be integers, got {segment_ids.dtype}")
