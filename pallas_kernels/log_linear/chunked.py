"""The chunk form of log-linear attention: one pass over chunks carries the states of all levels.

Inside a chunk of C = 2^p tokens, levels 0 to p are a constant table of pairs. Between chunks the
rule of the levels holds again, one granularity up: chunk n reads a state for every set bit of n,
level p + 1 + j for bit j ("slot" j below), then the states of its trailing ones and its own write
become one. Blocks of chunks are recomputed in the backward pass, so that memory holds the inputs
and a few states. Letters of the products as in `linear_attention.chunked`, and slot or level l.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels.common.chunks import from_chunks, to_chunks
from pallas_kernels.common.documents import Documents
from pallas_kernels.linear_attention.api import repeat_groups, widen
from pallas_kernels.log_linear.layout import (
    Layout,
    aligned_layout,
    from_slots,
    plain_layout,
    to_slots,
)
from pallas_kernels.log_linear.levels import (
    LogLinearState,
    bit_length,
    level_table,
    merge,
    merge_masks,
    pair_scales,
)
from pallas_kernels.log_linear.maps import ChunkMaps, Inputs, chunk_maps

_BLOCK = 4  # chunks that are recomputed together; their temporaries should fit a CPU's cache


# Inputs in slots [B,NC,...], where they lie, and states [B,H,J,K,V] -> results and states.
Walk = Callable[[Inputs, Layout, Array, np.ndarray], tuple[Array, Array]]


def log_linear_chunked(
    inputs: Inputs,
    state: LogLinearState,
    continues: bool,
    documents: Documents | None,
    chunk_size: int,
    max_documents: int,
    precision: jax.lax.PrecisionLike,
    walk: Walk | None = None,
    return_state: bool = True,
) -> tuple[Float[Array, "B T H V"], LogLinearState]:
    """The result and the last state.

    Args:
        inputs: padding zero; `beta` is None for SSD.
        state: before the first token; zeros unless `continues`.
        chunk_size: a power of two.
        max_documents: a row may hold; result and state are NaN where it holds more.
        walk: does what a scan over chunks does, but for a first chunk that `continues` a state.
        return_state: else the state returned means nothing.
    """
    batch, length, _, levels = inputs.scales.shape
    inside = chunk_size.bit_length()  # levels 0..p
    if documents is None and not continues:
        layout = plain_layout(batch, length, chunk_size)
    else:
        layout = aligned_layout(
            documents, state.length, length, chunk_size, max_documents, continues
        )
    slots = jax.tree.map(lambda x: to_slots(x, layout), inputs)
    count = max(1, levels - inside)
    if not continues:
        count = min(count, (-(-length // chunk_size) - 1).bit_length())
    # A state of fewer levels than a chunk has keeps everything older in the last of them.
    slot_level = np.minimum(inside + np.arange(count), levels - 1)
    local = partial(chunk_maps, precision=precision)
    product = partial(jnp.einsum, precision=precision)

    shape = state.levels.shape
    states = jnp.zeros((*shape[:2], shape[3], count, shape[4]), state.levels.dtype)
    head = None
    if continues:
        merged = merge(state.levels, state.length)
        states = jnp.moveaxis(merged[:, :, slot_level], 2, 3)
        older = merged[:, :, 1 : min(inside, levels - 1)]
        first = _chunk(slots, jnp.zeros(batch, jnp.int32), chunk_size)
        head = _continue_chunk(
            local(first), first.scales[:, :, 0], older, state.length % chunk_size, product
        )

    def scan(start: int, stop: int, states: Array) -> tuple[Array, Array]:
        part = jax.tree.map(lambda x: x[:, start * chunk_size : stop * chunk_size], slots)
        chunks = jax.tree.map(partial(to_chunks, size=chunk_size), _wide(part))
        y, states = _scan_chunks(
            chunks, layout.part(start, stop), states, head, slot_level, local, product
        )
        return from_chunks(y, (stop - start) * chunk_size), states

    if walk is None:
        y, states = scan(0, layout.chunks, states)
    else:
        begun = int(continues)
        y, states = scan(0, begun, states) if begun else (inputs.v[:, :0], states)
        if begun < layout.chunks:
            rest = jax.tree.map(lambda x: x[:, begun * chunk_size :], slots)
            by_level = jnp.moveaxis(states, 3, 2)
            more, by_level = walk(rest, layout.part(begun, layout.chunks), by_level, slot_level)
            y, states = (
                jnp.concatenate([y.astype(more.dtype), more], 1),
                jnp.moveaxis(by_level, 2, 3),
            )
    y = from_slots(y, layout, length)
    lost = layout.too_many
    y = jnp.where(lost[:, None, None, None], jnp.nan, y)
    if not return_state:
        return y, state

    # The last chunk is still open: its tokens are in levels of their own.
    at = (layout.length - 1) % chunk_size
    last = _chunk(slots, layout.last, chunk_size)
    new_levels = _open_levels(last, at, levels, local, product)
    new_levels = new_levels + _spread(jnp.moveaxis(states, 3, 2), slot_level, levels)
    if head is not None:
        start = _block_starts(state.length % chunk_size, head.passed.shape[2])
        level = jnp.minimum(bit_length(at[:, None] ^ start), levels - 1)
        still = (layout.last == 0)[:, None, None, None, None]
        new_levels = new_levels + jnp.where(still, _spread(head.passed, level, levels), 0)
        anything = jnp.any(layout.closes, axis=1) | (layout.length > state.length)
        new_levels = jnp.where(anything[:, None, None, None, None], new_levels, state.levels)
    new_levels = jnp.where(lost[:, None, None, None, None], jnp.nan, new_levels)
    return y, LogLinearState(new_levels, layout.length)


def _wide(inputs: Inputs) -> Inputs:
    """In the dtype to compute in, with q and k of every head."""
    q, k, v, *others = widen(*inputs, scale=1.0)
    return Inputs(*repeat_groups(q, k, v), v, *others)


def _chunk(slots: Inputs, n: Int[Array, " B"], size: int) -> Inputs:
    """Chunk n of every row, [B,H,1,C,...]."""
    row, at = np.arange(len(n))[:, None], n[:, None] * size + np.arange(size)

    def take(x: Array) -> Array:
        return x.at[row, at].get(mode="fill", fill_value=0)

    chunk = jax.tree.map(take, slots)
    return jax.tree.map(partial(to_chunks, size=size), _wide(chunk))


def _scan_chunks(
    chunks: Inputs,
    layout: Layout,
    states: Float[Array, "B H K J V"],
    head: "Head | None",
    slot_level: np.ndarray,
    local: Callable[[Inputs], ChunkMaps],
    product: Callable[..., Array],
) -> tuple[Float[Array, "B H N C V"], Float[Array, "B H K J V"]]:
    """Outputs of all chunks, and the states after the last one, which is not merged."""
    count = layout.chunks
    blocks = -(-count // _BLOCK)
    per_block = -(-count // blocks)
    padding = blocks * per_block - count
    emptied, target = (x[..., 1:] for x in merge_masks(layout.number + 1, len(slot_level) + 1))
    emptied, target = emptied & layout.closes[..., None], target & layout.closes[..., None]

    def in_blocks(x: Array, axis: int) -> Array:
        x = jnp.pad(x, [(0, padding if a == axis else 0) for a in range(x.ndim)])
        x = x.reshape(*x.shape[:axis], blocks, per_block, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    def step(carry, chunk):
        states, pending = carry
        reads, through, write, erase, scales, fresh, emptied, target = chunk
        states = jnp.where(fresh[:, None, None, None, None], 0, states)
        seen = product("bhik,bhklv->bhilv", reads, states)
        y = jnp.sum(seen * scales[..., None], axis=-2)
        kept = states * through[..., None, None, None]
        states = kept if erase is None else kept - product("bhkm,bhmlv->bhklv", erase, states)
        emptied, target = (x[:, None, None, :, None] for x in (emptied, target))
        total = jnp.sum(jnp.where(emptied, states, 0), axis=3) + write + pending
        states = jnp.where(emptied, 0, states) + jnp.where(target, total[:, :, :, None], 0)
        return (states, jnp.zeros_like(pending)), y

    @jax.checkpoint
    def block(carry, xs):
        chunks, fresh, emptied, target = xs
        maps = local(chunks)
        y = product("bhnij,bhnjv->bhniv", maps.scores * pair_scales(chunks.scales), maps.values)
        if not len(slot_level):
            return carry, y
        write = product("bhnik,bhniv->bhnkv", maps.writes, maps.updates)
        # As one matrix [K, K]: all slots share it, and it is applied in one product, not two.
        erase = None
        if maps.erases is not None:
            erase = product("bhnik,bhnim->bhnkm", maps.writes, maps.erases)
        scales = chunks.scales[..., slot_level]
        by_chunk = jax.tree.map(
            lambda x: jnp.moveaxis(x, 2, 0), (maps.reads, maps.through, write, erase, scales)
        )
        masks = (jnp.moveaxis(x, 1, 0) for x in (fresh, emptied, target))
        carry, seen = jax.lax.scan(step, carry, (*by_chunk, *masks))
        return carry, y + jnp.moveaxis(seen, 0, 2)

    pending = jnp.zeros((*states.shape[:3], states.shape[4]), states.dtype)
    if head is not None:
        pending = jnp.sum(head.passed, axis=2)
    xs = (
        jax.tree.map(partial(in_blocks, axis=2), chunks),
        *(in_blocks(x, 1) for x in (layout.fresh, emptied, target)),
    )
    (states, _), y = jax.lax.scan(block, (states, pending), xs)
    y = jnp.moveaxis(y, 0, 2)
    y = y.reshape(*y.shape[:2], -1, *y.shape[4:])[:, :, :count]
    if head is not None:
        y = y.at[:, :, 0].add(head.y)
    return y, states


class Head(NamedTuple):
    """What the levels of a state that ends inside a chunk are to the rest of that chunk.

    Attributes:
        y: [B,H,C,V], what its tokens read there.
        passed: [B,H,i,K,V], those levels after the chunk.
    """

    y: Array
    passed: Array


def _continue_chunk(
    maps: ChunkMaps,
    scales: Float[Array, "B H C L"],
    older: Float[Array, "B H I K V"],
    offset: Int[Array, " B"],
    product: Callable[..., Array],
) -> Head:
    """Levels 1, 2, ... of a state of `offset` tokens in the chunk, read by those that follow."""
    size, levels = scales.shape[-2:]
    maps = jax.tree.map(lambda x: x[:, :, 0], maps)
    start = _block_starts(offset, older.shape[2])  # [B, I]
    level = bit_length(jnp.arange(size)[:, None] ^ start[:, None, :])  # [B, C, I]
    weights = jnp.take_along_axis(scales, jnp.minimum(level, levels - 1)[:, None], axis=-1)
    y = product("bhik,bhlkv->bhilv", maps.reads, older)
    passed = older * maps.through[..., None, None, None]
    if maps.erases is not None:
        erased = product("bhik,bhlkv->bhilv", maps.erases, older)
        passed = passed - product("bhik,bhilv->bhlkv", maps.writes, erased)
    return Head(jnp.sum(y * weights[..., None], axis=-2), passed)


def _block_starts(offset: Int[Array, " B"], count: int) -> Int[Array, "B I"]:
    """First token of the bucket of each set bit of `offset`; a clear bit has an empty bucket."""
    bit = np.arange(1, count + 1)
    return (offset[:, None] >> bit) << bit


def _open_levels(
    chunk: Inputs,
    at: Int[Array, " B"],
    levels: int,
    local: Callable[[Inputs], ChunkMaps],
    product: Callable[..., Array],
) -> Float[Array, "B H L K V"]:
    """The levels of the tokens of each row's last chunk, of which `at` is the last.

    A chunk is linear in its values: with those of one level only, what it writes is that level.
    """
    size = chunk.q.shape[-2]
    table = jnp.asarray(level_table(size, levels))[at]  # [B, C]
    present = np.arange(size) <= at[:, None]
    inside = min(size.bit_length(), levels)
    member = (table[..., None] == np.arange(inside)) & present[..., None]  # [B, C, L]
    v = jnp.where(member[:, None, None, ..., None], chunk.v[..., None, :], 0)
    maps = local(chunk._replace(v=v.reshape(*v.shape[:-2], -1)))
    written = product("bhik,bhiv->bhkv", maps.writes[:, :, 0], maps.updates[:, :, 0])
    written = written.reshape(*written.shape[:3], inside, -1)
    return _spread(jnp.moveaxis(written, 3, 2), np.arange(inside), levels)


def _spread(
    states: Float[Array, "B H I K V"], level: np.ndarray | Int[Array, "B I"], levels: int
) -> Float[Array, "B H L K V"]:
    """States added to the levels they belong to."""
    one_hot = jax.nn.one_hot(jnp.asarray(level), levels, dtype=states.dtype)
    one_hot = jnp.broadcast_to(one_hot, (len(states), *one_hot.shape[-2:]))
    return jnp.einsum("bil,bhikv->bhlkv", one_hot, states, precision="highest")
