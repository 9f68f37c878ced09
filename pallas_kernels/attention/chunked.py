"""Causal attention in tiles of queries x keys: nothing of size T x T, forward or backward.

Forward: per block of queries, a loop over the blocks of keys up to the diagonal with an online
softmax. Backward: the same tiles again from the saved log-normaliser (Dao et al., arXiv:2205.14135,
algorithms 2 and 4), so that memory is linear in T. Keys after the diagonal block are never visited.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.attention.online import online_result, online_start, online_update
from pallas_kernels.attention.tiling import (
    KEY_BLOCK,
    QUERY_ROWS,
    Tiling,
    block_size,
    pad_to,
    query_blocks,
    segment_blocks,
    unblock_queries,
)
from pallas_kernels.common.numerics import accumulation_dtype


def attention_chunked(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    segment_ids: Int[Array, "B S"] | None,
    scale: float,
    precision: jax.lax.PrecisionLike,
) -> Float[Array, "B T H K"]:
    """See `causal_attention`."""
    length, heads, groups = q.shape[1], q.shape[2], k.shape[2]
    query_block = block_size(length, max(QUERY_ROWS * groups // heads, 16))
    key_block = block_size(k.shape[1], KEY_BLOCK)
    tiling = Tiling(k.shape[1] - length, query_block, key_block)
    q_blocks = query_blocks(q, groups, query_block)
    # As far as the last block of queries, so that no tile reaches beyond.
    length_padded = tiling.before + len(q_blocks) * query_block
    after = [(0, length_padded - k.shape[1])]
    k, v = (jnp.pad(x.transpose(0, 2, 1, 3), [(0, 0)] * 2 + after + [(0, 0)]) for x in (k, v))
    k, v = (pad_to(x, 2, key_block) for x in (k, v))
    if segment_ids is not None:
        segment_ids = jnp.pad(segment_ids, [(0, 0), *after])
    segments = segment_blocks(segment_ids, tiling)
    out: Any = _tiles(q_blocks, k, v, segments, tiling, scale, precision)
    return unblock_queries(out, query_block, length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _tiles(q_blocks, k, v, segments, tiling, scale, precision):
    """q_blocks [n,B,G,R*C,K], k and v [B,G,S,K] -> [n,B,G,R*C,K], C queries of a block."""
    return _forward(q_blocks, k, v, segments, tiling, scale, precision)[0]


def _forward(q_blocks, k, v, segments, tiling, scale, precision):
    n, batch, groups, rows, dim = q_blocks.shape
    dtype = accumulation_dtype(q_blocks, k, v)

    def one_block(args):
        i, q = args

        def step(j, state, masked):
            k_j, v_j = (_key_slice(x, j, tiling.key_block) for x in (k, v))
            visible = tiling.visible(i, j, rows, segments) if masked else None
            return online_update(state, q, k_j, v_j, visible, scale, precision)

        whole, end = tiling.key_block_range(i)
        state = online_start(batch, groups, rows, dim, dtype)
        state = jax.lax.fori_loop(
            0, whole, functools.partial(step, masked=segments is not None), state
        )
        state = jax.lax.fori_loop(whole, end, functools.partial(step, masked=True), state)
        out, log_total = online_result(state)
        return out.astype(v.dtype), log_total

    return jax.lax.map(one_block, (jnp.arange(n), q_blocks))


def _tiles_forward(q_blocks, k, v, segments, tiling, scale, precision):
    out, log_total = _forward(q_blocks, k, v, segments, tiling, scale, precision)
    return out, (q_blocks, k, v, segments, out, log_total)


def _tiles_backward(tiling, scale, precision, residuals, d_out):
    q_blocks, k, v, segments, out, log_total = residuals
    rows = q_blocks.shape[3]
    dtype = log_total.dtype
    product = functools.partial(jnp.einsum, precision=precision, preferred_element_type=dtype)
    # sum_s p_s dp_s, the softmax's own correction, equals out . d_out
    delta = jnp.sum(out.astype(dtype) * d_out.astype(dtype), axis=-1, keepdims=True)

    def one_block(carry, args):
        i, q, d_o, total, correction = args

        def step(j, state):
            d_q, d_k, d_v = state
            k_j, v_j = (_key_slice(x, j, tiling.key_block) for x in (k, v))
            scores = scale * product("bgqk,bgsk->bgqs", q, k_j)
            visible = tiling.visible(i, j, rows, segments)
            p = jnp.where(visible, jnp.exp(scores - total), 0)
            d_p = product("bgqk,bgsk->bgqs", d_o, v_j)
            d_scores = (scale * p * (d_p - correction)).astype(q.dtype)
            d_q = d_q + product("bgqs,bgsk->bgqk", d_scores, k_j)
            d_k = _add_slice(d_k, j, product("bgqs,bgqk->bgsk", d_scores, q))
            d_v = _add_slice(d_v, j, product("bgqs,bgqk->bgsk", p.astype(v.dtype), d_o))
            return d_q, d_k, d_v

        _, end = tiling.key_block_range(i)
        d_q, d_k, d_v = jax.lax.fori_loop(0, end, step, (jnp.zeros(q.shape, dtype), *carry))
        return (d_k, d_v), d_q.astype(q.dtype)

    start = (jnp.zeros(k.shape, dtype), jnp.zeros(v.shape, dtype))
    (d_k, d_v), d_q = jax.lax.scan(
        one_block, start, (jnp.arange(len(q_blocks)), q_blocks, d_out, log_total, delta)
    )
    return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype), None


_tiles.defvjp(_tiles_forward, _tiles_backward)


def _key_slice(x, j, key_block: int):
    return jax.lax.dynamic_slice_in_dim(x, j * key_block, key_block, axis=2)


def _add_slice(x, j, update):
    old = _key_slice(x, j, update.shape[2])
    return jax.lax.dynamic_update_slice_in_dim(x, old + update, j * update.shape[2], axis=2)
