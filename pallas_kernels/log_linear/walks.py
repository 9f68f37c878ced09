"""What a kernel that walks over chunks is told of levels, and what it gives back.

Between chunks the rule of levels holds one granularity up (see `chunked`): chunk number n reads a
state for every set bit of n, and what it writes becomes one with the states of its trailing ones.
The last state takes all bits beyond.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels.linear_attention.tokens import Levels
from pallas_kernels.log_linear.layout import Layout
from pallas_kernels.log_linear.levels import bit_length
from pallas_kernels.log_linear.maps import Inputs


def levels_walk(kernel: Callable[..., Any], chunk_size: int, precision: Any) -> Callable[..., Any]:
    """As `chunked.log_linear_chunked` takes it, by a kernel with the arguments of
    `linear_attention.pallas_tpu.walk`."""

    def walk(
        inputs: Inputs, layout: Layout, states: Float[Array, "B H J K V"], slot_level: np.ndarray
    ) -> tuple[Array, Float[Array, "B H J K V"]]:
        if not len(slot_level):  # a single chunk: nothing is ever read
            states = jnp.zeros((*states.shape[:2], 1, *states.shape[3:]), states.dtype)
        count = states.shape[2]
        reads, target = chunk_masks(layout, count)
        inner = np.arange(chunk_size.bit_length())
        levels = Levels(_take_levels(inputs.scales, inner, slot_level, count), reads, target)
        q, k, v, g, beta, _ = inputs
        states = jnp.where(_present(reads[:, 0], count), states, 0)
        y, states = kernel(q, k, v, g, beta, states, None, levels, precision)
        at_end = jnp.take_along_axis(reads, _last(layout, reads), axis=1)[:, 0]
        states = jnp.where(_present(at_end, count), states, 0)
        return y, states[:, :, : len(slot_level)]

    return walk


def chunk_masks(layout: Layout, states: int) -> tuple[Int[Array, "B N"], Int[Array, "B N"]]:
    """`reads` and `target` of `Levels`; chunks after a row's last read nothing."""
    number = layout.number.astype(jnp.int32)
    top = states - 1
    reads = (number & ((1 << top) - 1)) | ((number >> top > 0).astype(jnp.int32) << top)
    used = jnp.pad(layout.closes, ((0, 0), (1, 0)), constant_values=True)[:, :-1] | layout.closes
    ones = bit_length((number + 1) & -(number + 1)) - 1  # trailing ones of the number
    target = jnp.where(layout.closes, jnp.minimum(ones, top), -1)
    return jnp.where(used, reads, 0), target


def _last(layout: Layout, reads: Array) -> Int[Array, "B 1"]:
    """The last chunk that reads anything, or could: the one after the last that closes."""
    closing = jnp.where(layout.closes, jnp.arange(1, reads.shape[1] + 1), 0)
    return jnp.minimum(jnp.max(closing, axis=1, keepdims=True), reads.shape[1] - 1)


def _present(bits: Int[Array, " B"], count: int) -> Array:
    return ((bits[:, None] >> np.arange(count)) & 1 == 1)[:, None, :, None, None]


def _take_levels(scales: Array, inner: np.ndarray, slot_level: np.ndarray, count: int) -> Array:
    """Scales of the levels inside a chunk, then of the states."""
    last = scales.shape[-1] - 1
    beyond = slot_level if len(slot_level) else np.full(count, last)
    index = np.minimum(np.concatenate([inner, beyond]), last)
    if len(index) <= last + 1 and np.array_equal(index, np.arange(len(index))):
        return scales[..., : len(index)]
    return scales[..., index]
