"""Every pair of a query and a key in its window, a block of each at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.screening.reference import softmask, trim

_BLOCK = 128  # queries, and keys, that are compared at a time

Add = Callable[[Any, Float[Array, "B C S"], Int[Array, "C S"], Float[Array, ""]], Any]


def fold_windows(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    window: Float[Array, " H"],
    width: Float[Array, " H"],
    segments: Int[Array, "B T"],
    start: Callable[[int, int], Any],
    add: Add,
) -> Any:
    """Folds over the keys in the window of every query, from the nearest block back.

    Args:
        segments: document of each token, from 1; 0 is padding, which reads nothing and is read by
            nothing.
        start: of the numbers of rows and of queries B, C; an empty carry, of arrays [B, C, ...].
        add: of (carry, alpha, distance, window) for one tile and one block of keys; the next
            carry. alpha [B, C, S] is zero for keys out of the window or of another document.

    Returns:
        The carry of every query, [B, H, T, ...].

    Memory: that of the result, and of one block of queries against one of keys. A block out of all
    its windows costs nothing.
    """
    batch, length, heads, _ = q.shape
    block = min(_BLOCK, length)
    blocks = -(-length // block)
    padding = blocks * block - length
    own_document = jnp.pad(segments, ((0, 0), (0, padding))).reshape(batch, blocks, block)
    dtype = jnp.result_type(q.dtype, jnp.float32)

    def head_blocks(x: Array) -> Array:
        x = jnp.pad(x.astype(dtype), ((0, 0), (0, padding), (0, 0), (0, 0)))
        return jnp.moveaxis(x.reshape(batch, blocks, block, heads, -1), 3, 0)

    # The largest distance with a mask above zero, as the dense map rounds it, plus one.
    distances = jnp.arange(length)
    reach = jnp.sum(softmask(distances[:, None], window)[..., 0] > 0, axis=1)
    offset = jnp.arange(block)
    offset = offset[:, None] - offset

    def fold_head(head: tuple[Array, ...]) -> Any:
        q_bnck, k_bnck, reach, window, width = head

        def fold_block(n: Array) -> Any:
            q_bck, own = q_bnck[:, n], own_document[:, n]

            def step(band: Array, carry: Any) -> Any:
                m = n - band  # from the block's own keys back to the window's end
                similarity = jnp.einsum(
                    "bck,bsk->bcs", q_bck, k_bnck[:, m], precision=jax.lax.Precision.HIGHEST
                )
                alpha = trim(similarity[:, None], width[None])[:, 0]
                distance = offset + band * block
                live = (distance >= 0) & (distance < reach) & (own[:, :, None] > 0)
                live &= own[:, :, None] == own_document[:, m][:, None]
                return add(carry, jnp.where(live, alpha, 0), distance, window)

            bands = jnp.minimum((reach + block - 2) // block, n) + 1
            return jax.lax.fori_loop(0, bands, step, start(batch, block))

        return jax.lax.map(fold_block, jnp.arange(blocks))

    folded = jax.lax.map(
        fold_head, (head_blocks(q), head_blocks(k), reach, window, width.astype(dtype))
    )

    def by_query(x: Array) -> Array:
        x = jnp.moveaxis(x, 2, 0)  # [H, blocks, B, C, ...] to [B, H, blocks, C, ...]
        return x.reshape(batch, heads, blocks * block, *x.shape[4:])[:, :, :length]

    return jax.tree.map(by_query, folded)
