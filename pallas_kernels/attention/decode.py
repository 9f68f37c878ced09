"""Attention of new tokens to what a cache holds and to each other."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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

_CACHE_BLOCK = 512  # measured on CPU, one query: smaller ones cost more per key, larger little less


def decode_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    cache_k: Float[Array, "N B G S K"],
    cache_v: Float[Array, "N B G S K"],
    layer: Int[Array, ""] | int,
    start: Int[Array, " B"],
    length: Int[Array, " B"],
    segment_ids: Int[Array, "B T"],
    continues: Bool[Array, "B T"],
    *,
    scale: float | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "B T H K"]:
    """Causal attention of T >= 1 new tokens per row, which follow what the cache holds.

    The cache is read in place, one block of keys at a time and only up to the longest row, so a
    step costs what the context costs, not what the cache could hold. It is not written here.

    Args:
        q, k, v: the new tokens, position encoding applied.
        cache_k, cache_v: all N layers' keys and values; `layer` picks one without copying it.
        start, length: row b reads the entries start[b] <= s < length[b] ...
        continues: ... for the queries where this is True; the others read new tokens only.
        segment_ids: of the new tokens; a query reads the earlier ones with its own id. 0 is
            padding: zero output, read by nothing.
        scale: of the scores; None is K^-0.5.

    Returns:
        [B, T, H, K] in the dtype of v; scores and softmax in `promote_types(dtype, float32)`.
        Not differentiable: the number of visited blocks is a run-time value.
    """
    batch, new, heads, dim = q.shape
    _, _, groups, capacity, _ = cache_k.shape
    factor: float = float(dim**-0.5) if scale is None else scale
    dtype = accumulation_dtype(q, k, v)
    query_block = block_size(new, max(QUERY_ROWS * groups // heads, 16))
    new_block, cache_block = block_size(new, KEY_BLOCK), min(capacity, _CACHE_BLOCK)
    tiling = Tiling(0, query_block, new_block)
    q_blocks = query_blocks(q, groups, query_block)
    k_new, v_new = (pad_to(x.transpose(0, 2, 1, 3), 2, new_block) for x in (k, v))
    segments = segment_blocks(segment_ids, tiling)
    reads_cache = query_blocks(continues[:, :, None, None], 1, query_block)
    reads_cache = jnp.tile(reads_cache, (1, 1, 1, heads // groups, 1))
    length = jnp.minimum(length, capacity)
    first_block = jnp.min(start) // cache_block
    end_block = (jnp.max(length) + cache_block - 1) // cache_block

    def one_block(args):
        i, q_i, reads = args

        def old(j, state):
            # The last block is moved back to end with the cache; what it repeats is masked.
            at = jnp.minimum(j * cache_block, capacity - cache_block)
            entry = (at + jnp.arange(cache_block))[None, :]
            live = (
                (entry >= j * cache_block) & (entry >= start[:, None]) & (entry < length[:, None])
            )
            k_j, v_j = (
                _block(x, layer, at, cache_block).astype(v.dtype) for x in (cache_k, cache_v)
            )
            visible = reads & live[:, None, None, :]
            return online_update(state, q_i, k_j, v_j, visible, factor, precision)

        def fresh(j, state):
            k_j, v_j = (
                jax.lax.dynamic_slice_in_dim(x, j * new_block, new_block, axis=2)
                for x in (k_new, v_new)
            )
            visible = tiling.visible(i, j, q_i.shape[2], segments)
            return online_update(state, q_i, k_j, v_j, visible, factor, precision)

        state = online_start(batch, groups, q_i.shape[2], dim, dtype)
        state = jax.lax.fori_loop(first_block, end_block, old, state)
        _, end = tiling.key_block_range(i)
        return online_result(jax.lax.fori_loop(0, end, fresh, state))[0].astype(v.dtype)

    out = jax.lax.map(one_block, (jnp.arange(len(q_blocks)), q_blocks, reads_cache))
    return unblock_queries(out, query_block, new)


def _block(cache, layer, at, size: int):
    _, batch, groups, _, dim = cache.shape
    start = [jnp.asarray(i, jnp.int32) for i in (layer, 0, 0, at, 0)]  # of one type in 64 bits too
    return jax.lax.dynamic_slice(cache, start, (1, batch, groups, size, dim))[0]
