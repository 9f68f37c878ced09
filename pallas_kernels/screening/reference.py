"""Screening in its clearest form: a masked quadratic. The oracle for every other form."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.common.numerics import accumulation_dtype
from pallas_kernels.screening.extent import extent_of


def trim(similarity: Float[Array, "B H T S"], width: Float[Array, " H"]) -> Float[Array, "B H T S"]:
    """alpha = max(1 - (1 - s) / width, 0)^2: zero unless s > 1 - width, one at s = 1. (v3 eq. 9)"""
    return jnp.maximum(1 - (1 - similarity) / width[:, None, None], 0) ** 2


def softmask(distance: Int[Array, "T S"], window: Float[Array, " H"]) -> Float[Array, "H T S"]:
    """m = (cos(pi d / w) + 1) / 2 at distances 0 <= d = i - j < w, else zero. (v3 eq. 10)

    A window of infinity gives one at every distance d >= 0.
    """
    d = distance[None].astype(window.dtype)
    w = window[:, None, None]
    return jnp.where((d >= 0) & (d < w), (jnp.cos(jnp.pi * d / w) + 1) / 2, 0)


def relevance(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S H K"],
    window: Float[Array, " H"],
    width: Float[Array, " H"],
    segment_ids: Int[Array, "B N"] | None = None,
    gap: Int[Array, ""] | None = None,
    *,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
) -> Float[Array, "B H T S"]:
    """Relevance d_ij = trim x softmask of every pair; memory B H T S. Queries come last, or `gap`
    tokens after the last key: see `pallas_kernels.screening`."""
    dtype = accumulation_dtype(q, k)
    q, k, window, width = (x.astype(dtype) for x in (q, k, window, width))
    similarity = jnp.einsum("bthk,bshk->bhts", q, k, precision=precision)
    queries, keys = (jnp.arange(x.shape[1]) for x in (q, k))
    queries += extent_of(q, k, gap).before(gap)
    d = trim(similarity, width) * softmask(queries[:, None] - keys[None, :], window)
    if segment_ids is not None:
        of_queries = segment_ids[:, None, -q.shape[1] :, None]
        same = of_queries == segment_ids[:, None, None, : k.shape[1]]
        d = jnp.where(same & (of_queries != 0), d, 0)
    return d


def screening_reference(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H V"],
    window: Float[Array, " H"],
    width: Float[Array, " H"],
    segment_ids: Int[Array, "B N"] | None = None,
    gap: Int[Array, ""] | None = None,
    *,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
) -> Float[Array, "B T H V"]:
    """h_i = sum_j d_ij v_j with every pair held in memory; see `pallas_kernels.screening`."""
    d = relevance(q, k, window, width, segment_ids, gap, precision=precision)
    h = jnp.einsum("bhts,bshv->bthv", d, v.astype(d.dtype), precision=precision)
    return h.astype(v.dtype)
