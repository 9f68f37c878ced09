"""Log-linear SSD without a scan: states of aligned blocks of chunks, merged pair by pair.

With scalar decays a level is one batched product: all chunks in the right half of a block read the
state of its left half, each after its own decay since the middle. The products are half of what
the pass of `chunked` takes, and none waits for another chunk.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.common.chunks import decays, from_chunks, to_chunks
from pallas_kernels.log_linear.levels import pair_scales


def log_linear_ssd_tree(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"],
    scales: Float[Array, "B T H L"],
    chunk_size: int,
    precision: jax.lax.PrecisionLike,
) -> Float[Array, "B T H V"]:
    """One document a row, from its start. Computes for the next power of two of chunks."""
    length, groups = q.shape[1:3]
    levels = scales.shape[-1]
    chunks = 1 << (-(-length // chunk_size) - 1).bit_length()

    def split(x: Array, grouped: bool = True) -> Array:
        x = jnp.pad(x, ((0, 0), (0, chunks * chunk_size - length), *[(0, 0)] * (x.ndim - 2)))
        x = to_chunks(x, chunk_size)
        shape = (groups, x.shape[1] // groups) if grouped else (groups,)
        return x.reshape(x.shape[0], *shape, *x.shape[2:])

    def product(spec: str, *arrays: Array) -> Array:
        return jnp.einsum(spec, *arrays, precision=precision)

    q_bgnik, k_bgnjk = split(q, grouped=False), split(k, grouped=False)
    v_bgrnjv, g_bgrni, scales = split(v), split(g), split(scales)
    d = decays(g_bgrni)
    scores = product("bgnik,bgnjk->bgnij", q_bgnik, k_bgnjk)
    scores = scores[:, :, None] * (d.pairs * pair_scales(scales))
    y = product("bgrnij,bgrnjv->bgrniv", scores, v_bgrnjv)
    blocks = product("bgnjk,bgrnjv->bgrnkv", k_bgnjk, v_bgrnjv * d.to_end[..., None])

    log_start = jnp.cumsum(g_bgrni, axis=-1)
    log_total = log_start[..., -1]

    @jax.checkpoint
    def read(q: Array, left: Array, log_since: Array, scales: Array) -> Array:
        # On the side of the queries: so no gradient needs what was read.
        weighted = q[:, :, None] * (jnp.exp(log_since) * scales)[..., None]
        return product("bgrnsik,bgrnkv->bgrnsiv", weighted, left)

    for bit in range(chunks.bit_length() - 1):
        span = 1 << bit  # chunks in half a block
        level = min(chunk_size.bit_length() + bit, levels - 1)

        def halves(x: Array, axis: int) -> Array:
            return x.reshape(*x.shape[:axis], -1, 2, span, *x.shape[axis + 1 :])  # noqa: B023

        totals = halves(log_total, 3)[:, :, :, :, 1]
        since = jnp.cumsum(totals, axis=-1) - totals
        new = read(
            halves(q_bgnik, 2)[:, :, :, 1],
            blocks[:, :, :, 0::2],
            since[..., None] + halves(log_start, 3)[:, :, :, :, 1],
            halves(scales[..., level], 3)[:, :, :, :, 1],
        )
        y = halves(y, 3)
        y = y.at[:, :, :, :, 1].add(new).reshape(v_bgrnjv.shape)
        kept = jnp.exp(jnp.sum(totals, axis=-1))[..., None, None]
        blocks = blocks[:, :, :, 0::2] * kept + blocks[:, :, :, 1::2]
    return from_chunks(y.reshape(y.shape[0], -1, *y.shape[3:]), length)
