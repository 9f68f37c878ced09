"""Norms that are differentiable at zero, and the dtype in which sums are taken."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def accumulation_dtype(*arrays: Array) -> jnp.dtype:
    """Dtype for sums, norms and positions: float32, or float64 when an input is float64."""
    return jnp.result_type(jnp.float32, *arrays)


def unit_norm(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x / |x| over the last axis; a zero vector stays zero and has zero gradient.

    Computed and returned in `accumulation_dtype(x)`.
    """
    x = x.astype(accumulation_dtype(x))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    alive = ~(square <= jnp.finfo(x.dtype).tiny)  # this way round, NaN stays NaN
    # The inner `where` keeps the reciprocal, and with it the gradient, finite at zero.
    return jnp.where(alive, x / jnp.sqrt(jnp.where(alive, square, 1)), 0)


def tanh_norm(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """TanhNorm: (tanh |x| / |x|) x over the last axis, with its limit x at zero.

    Multiscreen, arXiv:2604.01178 v3, eq. 14. Screening rows without any accepted key are exactly
    zero and common, so value and gradient (the identity there) must be right at zero.
    Computed and returned in `accumulation_dtype(x)`.
    """
    x = x.astype(accumulation_dtype(x))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    small = square < 1e-4
    norm = jnp.sqrt(jnp.where(small, 1, square))
    # tanh(n) / n = 1 - n^2/3 + 2 n^4/15 - 17 n^6/315 + 62 n^8/2835 - ...
    series = 1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * 62 / 2835)))
    return x * jnp.where(small, series, jnp.tanh(norm) / norm)
