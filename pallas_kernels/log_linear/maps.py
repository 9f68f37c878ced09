"""Chunks as linear maps of their values and of the state before them, SSD and delta rule alike."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels.common.chunks import Decays, decays
from pallas_kernels.linear_attention.triangular import unit_lower_inverse


class Inputs(NamedTuple):
    """q, k, v, g, beta and the level scales: [B,T,H,...], or [B,H,N,C,...] once in chunks."""

    q: Array
    k: Array
    v: Array
    g: Array
    beta: Array | None
    scales: Array


class ChunkMaps(NamedTuple):
    """A chunk as maps of the values inside it and of the state before it.

        y  = scores values + reads S                (rows of S: keys)
        S' = through S + writes^T (updates - erases S)

    Attributes:
        scores: [..., C, C], of value j in output i.
        values: [..., C, V], beta v.
        reads: [..., C, K].
        writes: [..., C, K].
        updates: [..., C, V].
        erases: [..., C, K]; None if nothing is erased.
        through: [...].
    """

    scores: Array
    values: Array
    reads: Array
    writes: Array
    updates: Array
    erases: Array | None
    through: Array


def chunk_maps(chunks: Inputs, precision: jax.lax.PrecisionLike) -> ChunkMaps:
    """The maps of every chunk; one of SSD, without `beta`, erases nothing."""
    q, k, v, g, beta, _ = chunks
    d = decays(g)
    if beta is not None:
        return _delta_maps(q, k, v, beta, d, precision)
    return ChunkMaps(
        scores=jnp.einsum("bhnik,bhnjk->bhnij", q, k, precision=precision) * d.pairs,
        values=v,
        reads=q * d.from_start[..., None],
        writes=k * d.to_end[..., None],
        updates=v,
        erases=None,
        through=d.through,
    )


def _delta_maps(
    q: Float[Array, "B H N C K"],
    k: Float[Array, "B H N C K"],
    v: Float[Array, "B H N C V"],
    beta: Float[Array, "B H N C"],
    d: Decays,
    precision: jax.lax.PrecisionLike,
) -> ChunkMaps:
    """The WY form of S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T.

    (Gated DeltaNet, arXiv:2412.06464, section 3.3.) With D the decays between tokens,
    X = (I + strictly_lower(beta_i D_ij k_i.k_j))^-1 solves the chunk's triangular system once.
    """

    product = partial(jnp.einsum, precision=precision)
    earlier = np.tri(q.shape[-2], k=-1, dtype=bool)
    overlap = product("bhnik,bhnjk->bhnij", k, k) * d.pairs
    solve = unit_lower_inverse(jnp.where(earlier, overlap * beta[..., None], 0))
    scores = product("bhnik,bhnjk->bhnij", q, k) * d.pairs
    scores = product("bhnij,bhnjl->bhnil", scores, solve)
    from_start = d.from_start[..., None]
    values, keys = beta[..., None] * v, beta[..., None] * from_start * k
    return ChunkMaps(
        scores=scores,
        values=values,
        reads=from_start * q - product("bhnij,bhnjk->bhnik", scores, keys),
        writes=d.to_end[..., None] * k,
        updates=product("bhnij,bhnjv->bhniv", solve, values),
        erases=product("bhnij,bhnjk->bhnik", solve, keys),
        through=jnp.broadcast_to(d.through, q.shape[:3]),
    )
