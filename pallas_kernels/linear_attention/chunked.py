"""Chunk forms of the linear family: products inside chunks, a scan over states between them.

Memory is linear in T. Letters of the products: b batch, g group of heads that share q and k, r head
of a group, h head, n chunk, i reading and j read token of a chunk, k key and v value dimension.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels.common.chunks import (
    Decays,
    chunk_decays,
    chunk_documents,
    from_chunks,
    to_chunks,
)
from pallas_kernels.common.documents import Documents
from pallas_kernels.linear_attention.triangular import unit_lower_inverse


def ssd_chunked(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"] | None,
    state: Float[Array, "B H K V"],
    documents: Documents | None,
    chunk_size: int,
    precision: jax.lax.PrecisionLike,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """S_t = exp(g_t) S_{t-1} + k_t v_t^T, y_t = S_t^T q_t; the result and the last state.

    Inputs in the dtype to compute in, padding zero. Decays are put on the side of the values, so
    that heads of one group share the products of queries and keys.
    """
    length, groups = q.shape[1:3]
    size = min(chunk_size, length)
    q_bgnik, k_bgnjk = to_chunks(q, size), to_chunks(k, size)
    v_bgrnjv = _group(to_chunks(v, size), groups)
    decays = chunk_decays(
        None if g is None else to_chunks(g, size),
        None if documents is None else chunk_documents(documents.index, size),
        size,
    )
    decays = Decays(*(_group(x, groups) for x in decays))

    def product(spec: str, *arrays: Array) -> Array:
        return jnp.einsum(spec, *arrays, precision=precision)

    scores = product("bgnik,bgnjk->bgnij", q_bgnik, k_bgnjk)
    y = product("bgrnij,bgrnjv->bgrniv", scores[:, :, None] * decays.pairs, v_bgrnjv)
    writes = product("bgnjk,bgrnjv->bgrnkv", k_bgnjk, v_bgrnjv * decays.to_end[..., None])
    through = jnp.broadcast_to(decays.through, writes.shape[:4])

    def step(state: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        through, write = chunk
        return state * through[..., None, None] + write, state

    state, before = jax.lax.scan(
        step, _group(state, groups), (jnp.moveaxis(through, 3, 0), jnp.moveaxis(writes, 3, 0))
    )
    read = product("bgnik,nbgrkv->bgrniv", q_bgnik, before)
    y = y + read * decays.from_start[..., None]
    return from_chunks(_ungroup(y), length), _ungroup(state)


def _group(x: Array, groups: int) -> Array:
    """[B,H,...] -> [B,G,H/G,...]; an axis of size one stays for broadcasting."""
    heads = x.shape[1]
    split = (1, 1) if heads == 1 and groups > 1 else (groups, heads // groups)
    return x.reshape(x.shape[0], *split, *x.shape[2:])


def _ungroup(x: Array) -> Array:
    return x.reshape(x.shape[0], -1, *x.shape[3:])


class DeltaChunks(NamedTuple):
    """A delta rule chunk as maps of the values inside it and of the state before it.

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


def delta_chunks(
    q: Float[Array, "B H N C K"],
    k: Float[Array, "B H N C K"],
    v: Float[Array, "B H N C V"],
    beta: Float[Array, "B H N C"],
    decays: Decays,
    precision: jax.lax.PrecisionLike,
) -> DeltaChunks:
    """The WY form of S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T.

    (Gated DeltaNet, arXiv:2412.06464, section 3.3.) With D the decays between tokens,
    X = (I + strictly_lower(beta_i D_ij k_i.k_j))^-1 solves the chunk's triangular system once.
    """

    def product(spec: str, *arrays: Array) -> Array:
        return jnp.einsum(spec, *arrays, precision=precision)

    earlier = np.tri(q.shape[-2], k=-1, dtype=bool)
    overlap = product("bhnik,bhnjk->bhnij", k, k) * decays.pairs
    solve = unit_lower_inverse(jnp.where(earlier, overlap * beta[..., None], 0))
    scores = product("bhnik,bhnjk->bhnij", q, k) * decays.pairs
    scores = product("bhnij,bhnjl->bhnil", scores, solve)
    from_start = decays.from_start[..., None]
    values, keys = beta[..., None] * v, beta[..., None] * from_start * k
    return DeltaChunks(
        scores=scores,
        values=values,
        reads=from_start * q - product("bhnij,bhnjk->bhnik", scores, keys),
        writes=decays.to_end[..., None] * k,
        updates=product("bhnij,bhnjv->bhniv", solve, values),
        erases=product("bhnij,bhnjk->bhnik", solve, keys),
        through=jnp.broadcast_to(decays.through, q.shape[:3]),
    )


def gated_delta_rule_chunked(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"] | None,
    beta: Float[Array, "B T H"],
    state: Float[Array, "B H K V"],
    documents: Documents | None,
    chunk_size: int,
    precision: jax.lax.PrecisionLike,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """The gated delta rule; `g=None` is the delta rule. Arguments as in `ssd_chunked`."""
    length = q.shape[1]
    size = min(chunk_size, length)
    decays = chunk_decays(
        None if g is None else to_chunks(g, size),
        None if documents is None else chunk_documents(documents.index, size),
        size,
    )
    c = delta_chunks(*(to_chunks(x, size) for x in (q, k, v, beta)), decays, precision)

    def product(spec: str, *arrays: Array) -> Array:
        return jnp.einsum(spec, *arrays, precision=precision)

    def step(state: Array, chunk: tuple[Array, ...]) -> tuple[Array, Array]:
        writes, updates, erases, through = chunk
        updates = updates - product("bhik,bhkv->bhiv", erases, state)
        write = product("bhik,bhiv->bhkv", writes, updates)
        return state * through[..., None, None] + write, state

    by_chunk = (jnp.moveaxis(x, 2, 0) for x in (c.writes, c.updates, c.erases, c.through))
    state, before = jax.lax.scan(step, state, tuple(by_chunk))
    y = product("bhnij,bhnjv->bhniv", c.scores, c.values)
    y = y + product("bhnik,nbhkv->bhniv", c.reads, before)
    return from_chunks(y, length), state
