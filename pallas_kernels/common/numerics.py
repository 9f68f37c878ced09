"""Norms that are differentiable at zero, and the dtype in which sums are taken."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def accumulation_dtype(*arrays: Array) -> jnp.dtype:
    """Dtype for sums, norms and positions: float32, or float64 when an input is float64."""
    return jnp.result_type(jnp.float32, *arrays)


def unit_norm(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x / |x| over the last axis; a zero vector stays zero and has zero gradient.

    Computed and returned in `accumulation_dtype(x)`.
    """
    return _unit_norm(x.astype(accumulation_dtype(x)))


def tanh_norm(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """TanhNorm: (tanh |x| / |x|) x over the last axis, with its limit x at zero.

    Multiscreen, arXiv:2604.01178 v3, eq. 14. Screening rows without any accepted key are exactly
    zero and common, so value and gradient (the identity there) must be right at zero.
    Computed and returned in `accumulation_dtype(x)`.
    """
    return _tanh_norm(x.astype(accumulation_dtype(x)))


# The derivatives are written by hand, and their sums as products of vectors: automatic ones take
# more passes over the data, and XLA makes sum(x * y) ten times slower than a product on CPUs.
# What multiplies a tangent is `_scale`d: XLA takes such a product into the pass of the sum beside
# it, but writes the factor of an ordinary one out first, repeated over the last axis.


def _dot(x, y):
    return jnp.einsum("...k,...k->...", x, y, precision="highest")


def _scale(x, factor):
    return jnp.einsum("...k,...->...k", x, factor, precision="highest")


def _reciprocal_norm(x):
    square = jnp.sum(x * x, axis=-1)
    alive = ~(square <= jnp.finfo(x.dtype).tiny)  # this way round, NaN stays NaN
    # The inner `where` keeps the reciprocal finite at zero.
    return jnp.where(alive, 1 / jnp.sqrt(jnp.where(alive, square, 1)), 0)


@jax.custom_jvp
def _unit_norm(x):
    return x * _reciprocal_norm(x)[..., None]


@_unit_norm.defjvp
def _unit_norm_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    reciprocal = _reciprocal_norm(x)
    unit, turn = x * reciprocal[..., None], _scale(dx, reciprocal)
    return unit, turn - _scale(unit, _dot(unit, turn))


def _tanh_ratio(x):
    """f = tanh(n) / n and 2 df/d(n^2), for n = |x|."""
    square = jnp.sum(x * x, axis=-1)
    small = square < 1e-4
    safe = jnp.where(small, 1, square)
    norm = jnp.sqrt(safe)
    tanh = jnp.tanh(norm)
    # tanh(n) / n = 1 - n^2/3 + 2 n^4/15 - 17 n^6/315 + 62 n^8/2835 - ...
    series = 1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * 62 / 2835)))
    slope = -2 / 3 + square * (8 / 15 + square * (-34 / 105 + square * 496 / 2835))
    return (
        jnp.where(small, series, tanh / norm),
        jnp.where(small, slope, (1 - tanh * tanh - tanh / norm) / safe),
    )


@jax.custom_jvp
def _tanh_norm(x):
    return x * _tanh_ratio(x)[0][..., None]


@_tanh_norm.defjvp
def _tanh_norm_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    ratio, slope = _tanh_ratio(x)
    return x * ratio[..., None], _scale(dx, ratio) + _scale(x, slope * _dot(x, dx))
