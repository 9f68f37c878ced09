"""What the decode kernels share: where a ring's slots lie in a row, and the mask at a distance.

Elementwise code without integer division, so that it runs inside kernels for TPU and GPU alike.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.common.numerics import accumulation_dtype

MAX_QUERIES = 4  # per call of a kernel: longer chunks are matrix products, which XLA does well


def check_for_kernels(q: Array, keys: Array, values: Array) -> None:
    """NotImplementedError for what neither kernel can do."""
    dtype = accumulation_dtype(q, keys, values)
    if dtype != jnp.float32:
        raise NotImplementedError(f"sums are in float32, these inputs need {dtype}")
    if q.shape[1] > MAX_QUERIES:
        raise NotImplementedError(f"at most {MAX_QUERIES} queries, got {q.shape[1]}")


def ring_head(length: Int[Array, ""], size: Int[Array, ""]) -> Int[Array, ""]:
    """Slot of the newest position; an empty row's is slot 0."""
    return jax.lax.rem(jnp.maximum(length - 1, 0), size)


def slot_positions(
    slot: Int[Array, "..."], length: Int[Array, ""], size: Int[Array, ""], head: Int[Array, ""]
) -> Int[Array, "..."]:
    """Newest position written to each slot of [0, size), negative if there is none."""
    age = jnp.where(slot <= head, head - slot, head - slot + size)
    return length - 1 - age


def readable(
    slot: Int[Array, "..."],
    position: Int[Array, "..."],
    query: Int[Array, "..."],
    live: Int[Array, ""],
    start: Int[Array, ""],
    window: Float[Array, ""],
) -> tuple[Bool[Array, "..."], Float[Array, "..."]]:
    """(whether the query may read the slot, the distance) for a ring's first `live` slots."""
    distance = (query - position).astype(jnp.float32)
    own = (slot >= 0) & (slot < live) & (position >= start)
    return own & (distance < window) & (query >= 0), distance


def half_cosine(distance: Float[Array, "..."], window: Float[Array, "..."]) -> Float[Array, "..."]:
    """(1 + cos(pi d / w)) / 2 at 0 <= d < w, to a relative 1e-6.

    As the square of sin(pi (1 - d / w) / 2), where a short series does: a GPU library's cosine has
    a slow path for large angles that takes stack memory.
    """
    angle = (jnp.pi / 2) * (1 - distance / window)
    square = angle * angle
    series = 1 / 6227020800
    for factorial in (-39916800, 362880, -5040, 120, -6, 1):
        series = 1 / factorial + square * series
    return (angle * series) ** 2
