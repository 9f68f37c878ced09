"""Rotary position embedding in the rotate-half layout: coordinate c pairs with c + K/2."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Rotation = tuple[Float[Array, "B T C"], Float[Array, "B T C"]]


def rotary_angles(
    positions: Int[Array, "B T"], dim: int, theta: float, factor: float, dtype: jnp.dtype
) -> Rotation:
    """(cos, sin) [B, T, K/2] of the angles position / factor * theta^(-2c/K), c < K/2.

    RoFormer, arXiv:2104.09864, eq. 15; `factor` > 1 squeezes positions into the trained range
    (position interpolation, arXiv:2306.15595, eq. 4). Angles are in `dtype`, at least float32:
    bfloat16 cannot tell position 257 from 256.
    """
    dtype = jnp.promote_types(dtype, jnp.float32)
    frequency = theta ** -(np.arange(0, dim, 2) / dim) / factor
    angle = positions[..., None].astype(dtype) * jnp.asarray(frequency, dtype)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[Array, "B T H K"], rotation: Rotation) -> Float[Array, "B T H K"]:
    """Turn each pair (x_c, x_{c+K/2}) by its token's angle; computed in the angles' dtype."""
    cos, sin = (part[:, :, None, :] for part in rotation)
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
