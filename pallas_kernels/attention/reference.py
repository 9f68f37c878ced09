"""Causal attention written out with its T x S map: the oracle."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.common.numerics import accumulation_dtype


def attention_reference(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    segment_ids: Int[Array, "B S"] | None,
    scale: float,
    precision: jax.lax.PrecisionLike = "highest",
) -> Float[Array, "B T H K"]:
    """See `causal_attention`."""
    length, before, repeat = k.shape[1], k.shape[1] - q.shape[1], q.shape[2] // k.shape[2]
    dtype = accumulation_dtype(q, k, v)
    q_bthk = q.astype(dtype)
    k_bshk, v_bshk = (jnp.repeat(x.astype(dtype), repeat, axis=2) for x in (k, v))
    scores_bhts = scale * jnp.einsum("bthk,bshk->bhts", q_bthk, k_bshk, precision=precision)
    visible = jnp.tril(jnp.ones((length, length), bool))[None, None, before:]
    if segment_ids is not None:
        of_query = segment_ids[:, before:, None]
        same = of_query == segment_ids[:, None, :]
        visible = visible & (same & (of_query != 0))[:, None]
    lowest = 0.5 * jnp.finfo(dtype).min
    weights_bhts = jax.nn.softmax(jnp.where(visible, scores_bhts, lowest), axis=-1)
    weights_bhts = jnp.where(visible, weights_bhts, 0)  # a query that sees nothing reads nothing
    return jnp.einsum("bhts,bshk->bthk", weights_bhts, v_bshk, precision=precision).astype(v.dtype)
