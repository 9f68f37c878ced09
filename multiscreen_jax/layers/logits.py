"""Logits of a vocabulary: one product, and a cap on its size where the model has one."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def logits_of(
    hidden: Float[Array, "... D"], rows: Float[Array, "O D"], cap: float | None, precision: Any
) -> Float[Array, "... O"]:
    """cap(hidden rows^T), in `promote_types(dtype, float32)`."""
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    product = jnp.einsum(
        "...d,od->...o", hidden, rows, precision=precision, preferred_element_type=wide
    )
    return soft_cap(product, cap)


def soft_cap(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """c tanh(x / c), within (-c, c) and near x where x is small; x without a cap.

    Gemma 2, arXiv:2408.00118, section 2.2.
    """
    return x if cap is None else cap * jnp.tanh(x / cap)


def soft_cap_slope(y: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    """The derivative of `soft_cap` where its result is y."""
    return 1 - (y / cap) ** 2
