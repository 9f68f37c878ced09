"""Chunk forms of the linear family: products inside chunks, a scan over states between them.

Memory is linear in T. Letters of the products: b batch, g group of heads that share q and k, r head
of a group, h head, n chunk, i reading and j read token of a chunk, k key and v value dimension.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels.common.chunks import Decays, decays, scan_chunks
from pallas_kernels.common.documents import Documents, gates
from pallas_kernels.linear_attention.triangular import unit_lower_solve


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
    groups = q.shape[2]
    product = partial(jnp.einsum, precision=precision)

    def step(state: Array, q: Array, k: Array, v: Array, g: Array) -> tuple[Array, Array]:
        q, k, v, g = (jnp.moveaxis(x, 2, 1) for x in (q, k, v, g))
        d = Decays(*(_group(x, groups) for x in decays(g)))
        v_bgrjv = _group(v, groups)
        weights = product("bgik,bgjk->bgij", q, k)[:, :, None] * d.pairs
        y = product("bgrij,bgrjv->bgriv", weights, v_bgrjv)
        y = y + product("bgik,bgrkv->bgriv", q, state) * d.from_start[..., None]
        write = product("bgjk,bgrjv->bgrkv", k, v_bgrjv * d.to_end[..., None])
        state = state * d.through[..., None, None] + write
        return state, jnp.moveaxis(y.reshape(v.shape), 1, 2)

    g = gates(g, documents, like=v)
    size = min(chunk_size, q.shape[1])
    y, last = scan_chunks(step, _group(state, groups), size, q, k, v, g)
    return y, last.reshape(state.shape)


def _group(x: Array, groups: int) -> Array:
    """[B,H,...] -> [B,G,H/G,...]; an axis of size one stays for broadcasting."""
    heads = x.shape[1]
    split = (1, 1) if heads == 1 else (groups, heads // groups)
    return x.reshape(x.shape[0], *split, *x.shape[2:])


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
    """The gated delta rule; `g=None` is the delta rule. Arguments as in `ssd_chunked`.

    With D the decays between tokens, the chunk's updates u solve one triangular system (the WY
    form, arXiv:2412.06464, section 3.3), and then it is as without the delta rule:

        u_i = beta_i (v_i - D_i S^T k_i - sum_{j<i} D_ij (k_i.k_j) u_j)
    """
    product = partial(jnp.einsum, precision=precision)

    def step(
        state: Array, q: Array, k: Array, v: Array, g: Array, beta: Array
    ) -> tuple[Array, Array]:
        q, k, v, g, beta = (jnp.moveaxis(x, 2, 1) for x in (q, k, v, g, beta))
        d = decays(g)
        overlaps = product("bhik,bhjk->bhij", k, k) * d.pairs * beta[..., None]
        earlier = np.tri(k.shape[2], k=-1, dtype=bool)
        from_start = d.from_start[..., None]
        rest = v - product("bhik,bhkv->bhiv", k, state) * from_start
        updates = unit_lower_solve(
            jnp.where(earlier, overlaps, 0), beta[..., None] * rest, precision
        )
        scores = product("bhik,bhjk->bhij", q, k) * d.pairs
        y = product("bhij,bhjv->bhiv", scores, updates)
        y = y + product("bhik,bhkv->bhiv", q, state) * from_start
        write = product("bhjk,bhjv->bhkv", k, updates * d.to_end[..., None])
        return state * d.through[..., None, None] + write, jnp.moveaxis(y, 1, 2)

    g = gates(g, documents, like=v)
    return scan_chunks(step, state, min(chunk_size, q.shape[1]), q, k, v, g, beta)
