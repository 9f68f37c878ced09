"""The log-linear gated delta rule of whole sequences: level by level over aligned blocks.

The level of bit j is read across the middle of every aligned block of 2^(j+1) chunks: the state of
its left half is handed on through the chunks of its right half, and each of them reads it. At the
end it is, with what the right half wrote itself, the state of the block: a half of the next level.
So each chunk hands on just the states that it reads, half of all levels, and blocks do not wait
for each other. Letters of the products as in `linear_attention.chunked`; s is a chunk of a half.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels.common.chunks import from_chunks, to_chunks
from pallas_kernels.log_linear.levels import pair_scales
from pallas_kernels.log_linear.maps import Inputs, chunk_maps

_BLOCK = 4  # chunks whose maps are computed together: small enough for a CPU's cache


def log_linear_delta_tree(
    inputs: Inputs, chunk_size: int, precision: jax.lax.PrecisionLike
) -> Float[Array, "B T H V"]:
    """One document a row, from its start; q and k with the heads of v. Reverse mode only."""
    length, levels = inputs.v.shape[1], inputs.scales.shape[-1]
    count = -(-length // chunk_size)
    room = 1 << (count - 1).bit_length()  # in arrays: chunks beyond `count` are not worked on
    y, reads, blocks, passing = _inside_chunks(inputs, chunk_size, room, precision)
    scales = _pad_chunks(to_chunks(inputs.scales, chunk_size), room)

    for bit in range((count - 1).bit_length()):
        span = 1 << bit  # chunks in half a block
        halves = (count + span - 1) >> (bit + 1)  # right halves that exist
        chunks = min(span, count - span)  # in each; the only one may be cut short
        level = min(chunk_size.bit_length() + bit, levels - 1)

        def split(x: Array) -> Array:
            return x.reshape(*x.shape[:2], -1, 2, span, *x.shape[3:])  # noqa: B023

        here = (slice(None), slice(None), slice(halves), 1, slice(chunks))
        seen, passed = _hand_on(
            blocks[:, :, 0 : 2 * halves : 2],
            split(passing)[here],
            split(reads)[here] * split(scales[..., level])[here][..., None],
            precision,
        )
        y = split(y).at[here].add(seen).reshape(y.shape)
        blocks = _pad_chunks(passed, blocks.shape[2] // 2) + blocks[:, :, 1::2]
    return from_chunks(y, length)


def _inside_chunks(
    inputs: Inputs, chunk_size: int, room: int, precision: jax.lax.PrecisionLike
) -> tuple[Array, Array, Array, Array]:
    """What chunks are without each other, [B,H,N,...]: y, reads, states written, transitions."""
    product = partial(jnp.einsum, precision=precision)
    per_block = min(_BLOCK, room)

    @jax.checkpoint
    def block(_: None, chunks: Inputs) -> tuple[None, tuple[Array, ...]]:
        maps = chunk_maps(chunks, precision)
        y = product("bhnij,bhnjv->bhniv", maps.scores * pair_scales(chunks.scales), maps.values)
        write = product("bhnik,bhniv->bhnkv", maps.writes, maps.updates)
        erase = product("bhnik,bhnim->bhnkm", maps.writes, maps.erases)
        kept = maps.through[..., None, None] * np.eye(erase.shape[-1], dtype=erase.dtype)
        return None, (y, maps.reads, write, kept - erase)

    def in_blocks(x: Array) -> Array:
        x = _pad_chunks(to_chunks(x, chunk_size), room)
        return jnp.moveaxis(x.reshape(*x.shape[:2], -1, per_block, *x.shape[3:]), 2, 0)

    def whole(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, 2)
        return x.reshape(*x.shape[:2], room, *x.shape[4:])

    _, found = jax.lax.scan(block, None, jax.tree.map(in_blocks, inputs))
    return jax.tree.map(whole, found)


def _pad_chunks(x: Array, count: int) -> Array:
    return jnp.pad(x, [(0, count - x.shape[2] if axis == 2 else 0) for axis in range(x.ndim)])


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _hand_on(
    left: Float[Array, "B H N K V"],
    passing: Float[Array, "B H N S K K"],
    reads: Float[Array, "B H N S C K"],
    precision: jax.lax.PrecisionLike,
) -> tuple[Float[Array, "B H N S C V"], Float[Array, "B H N K V"]]:
    """What S chunks read of the states of the left halves, and those states after them.

    The gradient recomputes the states and keeps its products out of the scan, which autodiff
    would not.
    """
    return _hand_on_forward(left, passing, reads, precision)[0]


def _hand_on_forward(left, passing, reads, precision):
    product = partial(jnp.einsum, precision=precision)
    passed, before = _states(left, passing, product)
    seen = product("bhnsik,sbhnkv->bhnsiv", reads, before)
    return (seen, passed), (left, passing, reads)


def _hand_on_backward(precision, residuals, cotangents):
    left, passing, reads = residuals
    d_seen, d_passed = cotangents
    product = partial(jnp.einsum, precision=precision)
    _, before = _states(left, passing, product)
    d_reads = product("bhnsiv,sbhnkv->bhnsik", d_seen, before)
    d_read = product("bhnsik,bhnsiv->sbhnkv", reads, d_seen)

    def step(d_after: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        s, d_read = chunk
        d_before = product("bhnkm,bhnkv->bhnmv", _at(passing, s), d_after)
        return d_before + d_read, d_after

    order = np.arange(passing.shape[3])
    d_left, d_after = jax.lax.scan(step, d_passed, (order, d_read), reverse=True)
    d_passing = product("sbhnkv,sbhnmv->bhnskm", d_after, before)
    return d_left, d_passing, d_reads


_hand_on.defvjp(_hand_on_forward, _hand_on_backward)


def _states(left: Array, passing: Array, product: Callable[..., Array]) -> tuple[Array, Array]:
    """The states after the last chunk and before every chunk, [S,B,H,N,K,V]."""

    def step(state: Array, s: Any) -> tuple[Array, Array]:
        return product("bhnkm,bhnmv->bhnkv", _at(passing, s), state), state

    return jax.lax.scan(step, left, np.arange(passing.shape[3]))


def _at(passing: Array, s: Any) -> Array:
    return jax.lax.dynamic_index_in_dim(passing, s, axis=3, keepdims=False)
