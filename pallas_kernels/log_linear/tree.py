"""Log-linear attention of whole sequences: maps of aligned blocks, merged pair by pair.

To the state before it, a block of tokens is a linear map: what its tokens read of it, and what is
left of it after them. Where two halves meet, the later one reads what the earlier one wrote, which
is one level, and then their maps are one:

    y_later      += lambda_level reads_later W_earlier
    reads_later   = reads_later P_earlier
    W, P          = P_later W_earlier + W_later,  P_later P_earlier

Large blocks, which fill a CPU's cache, are made in this way from chunks. A scan over them carries
the states of the levels above, by the rule of `chunked`, and every block reads those not empty.
Letters as in `linear_attention.chunked`; i counts the tokens of a block, l levels.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels.common.chunks import from_chunks, to_chunks
from pallas_kernels.log_linear.levels import merge_masks, pair_scales
from pallas_kernels.log_linear.maps import Inputs, chunk_maps

_BLOCK = 8  # chunks of a large block
_WASTE = 1.25  # of the tokens that are computed, by those there are


class Blocks(NamedTuple):
    """N aligned blocks of I tokens.

    Attributes:
        y: [B,H,N,I,V], what tokens read of their own block.
        reads: [B,H,N,I,K], what they read of a state before it.
        written: [B,H,N,K,V], the block's own state after it.
        through: [B,H,N] or [B,H,N,K,K], what a state before it is multiplied by.
    """

    y: Array
    reads: Array
    written: Array
    through: Array


def log_linear_tree(
    inputs: Inputs, chunk_size: int, precision: jax.lax.PrecisionLike
) -> Float[Array, "B T H V"]:
    """One document a row, from its start. Its temporaries are those of one large block."""
    batch, length, heads, _ = inputs.scales.shape
    chunks = -(-length // chunk_size)
    size = _block_size(chunks)
    count = -(-chunks // size)
    inside = (chunk_size * size).bit_length()
    above = (count - 1).bit_length()
    product = partial(jnp.einsum, precision=precision)

    def in_blocks(x: Array) -> Array:
        x = to_chunks(x, chunk_size)
        x = jnp.pad(x, [(0, count * size - chunks if a == 2 else 0) for a in range(x.ndim)])
        return jnp.moveaxis(x.reshape(*x.shape[:2], count, size, *x.shape[3:]), 2, 0)

    @jax.checkpoint
    def step(states: Array, xs: tuple) -> tuple[Array, Array]:
        inputs, present, emptied, target = xs
        block = jax.tree.map(lambda x: x[:, :, 0], _merge_chunks(inputs, precision))
        y = block.y
        for bit in range(above):  # as one product, gradients would be slow sums over an inner axis
            scales = _level(inputs.scales, inside + bit).reshape(block.reads.shape[:3])
            read = partial(_read, block.reads, scales, states[:, :, bit], product=product)
            y += jax.lax.cond(present[bit], read, lambda y=y: jnp.zeros_like(y))
        states = _pass(block.through[:, :, None], states, product)
        emptied, target = (x[:, None, None] for x in (emptied, target))
        total = jnp.sum(jnp.where(emptied, states, 0), axis=2) + block.written
        states = jnp.where(emptied, 0, states) + jnp.where(target, total[:, :, None], 0)
        return states, y

    # The levels above: level 0 of the rule is the block that was just read.
    emptied, target = (x[:, 1:] for x in merge_masks(jnp.arange(1, count + 1), above + 1))
    shape = (batch, heads, above, inputs.k.shape[-1], inputs.v.shape[-1])
    states = jnp.zeros(shape, inputs.v.dtype)
    present = np.arange(count)[:, None] >> np.arange(above) & 1 == 1  # the other half is empty
    xs = (jax.tree.map(in_blocks, inputs), jnp.asarray(present), emptied, target)
    _, y = jax.lax.scan(step, states, xs)
    y = jnp.moveaxis(y, 0, 2)
    return from_chunks(y.reshape(*y.shape[:2], -1, chunk_size, y.shape[-1]), length)


def _block_size(chunks: int) -> int:
    """Chunks of a large block: as many as do not waste too much on a last one."""
    size = min(_BLOCK, 1 << (chunks - 1).bit_length())
    while -(-chunks // size) * size > _WASTE * chunks:
        size //= 2
    return size


def _level(scales: Float[Array, "*B L"], level: int) -> Float[Array, "*B"]:
    """The last level's for those beyond it."""
    return scales[..., min(level, scales.shape[-1] - 1)]


def _merge_chunks(chunks: Inputs, precision: jax.lax.PrecisionLike) -> Blocks:
    """One block of all chunks, whose number is a power of two."""
    product = partial(jnp.einsum, precision=precision)
    blocks = _from_chunks(chunks, product, precision)
    level = chunks.scales.shape[-2].bit_length()
    while blocks.y.shape[2] > 1:
        scales = _level(chunks.scales, level).reshape(blocks.y.shape[:4])
        blocks = _merge_pairs(blocks, scales, product)
        level += 1
    return blocks


def _from_chunks(chunks: Inputs, product, precision) -> Blocks:
    maps = chunk_maps(chunks, precision)
    y = product("bhnij,bhnjv->bhniv", maps.scores * pair_scales(chunks.scales), maps.values)
    written = product("bhnik,bhniv->bhnkv", maps.writes, maps.updates)
    if maps.erases is None:
        return Blocks(y, maps.reads, written, maps.through)
    erased = product("bhnik,bhnim->bhnkm", maps.writes, maps.erases)
    kept = maps.through[..., None, None] * np.eye(erased.shape[-1], dtype=erased.dtype)
    return Blocks(y, maps.reads, written, kept - erased)


def _merge_pairs(blocks: Blocks, scales: Float[Array, "B H N I"], product) -> Blocks:
    """Blocks of twice the tokens; `scales` are those of the level between the halves."""
    earlier = jax.tree.map(lambda x: x[:, :, 0::2], blocks)
    later = jax.tree.map(lambda x: x[:, :, 1::2], blocks)
    weighted = later.reads * scales[:, :, 1::2, :, None]
    seen = product("bhnik,bhnkv->bhniv", weighted, earlier.written)
    if earlier.through.ndim == 3:
        reads = later.reads * earlier.through[..., None, None]
        through = later.through * earlier.through
    else:
        reads = product("bhnik,bhnkm->bhnim", later.reads, earlier.through)
        through = product("bhnkm,bhnml->bhnkl", later.through, earlier.through)
    return Blocks(
        y=jnp.concatenate([earlier.y, later.y + seen], axis=3),
        reads=jnp.concatenate([earlier.reads, reads], axis=3),
        written=_pass(later.through, earlier.written, product) + later.written,
        through=through,
    )


def _read(reads, scales, state, product) -> Float[Array, "B H I V"]:
    return product("bhik,bhkv->bhiv", reads * scales[..., None], state)


def _pass(through: Array, states: Float[Array, "B H N K V"], product) -> Array:
    """The states after the blocks."""
    if through.ndim == 3:
        return states * through[..., None, None]
    return product("...km,...mv->...kv", through, states)
