"""One token of the linear family: state in, state out."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def additive_write(k: Float[Array, "B H K"], v: Float[Array, "B H V"]) -> Float[Array, "B H K V"]:
    """k v^T."""
    return k[..., :, None] * v[..., None, :]


def transition(
    state: Float[Array, "B H *L K V"],
    g: Float[Array, "B H"],
    k: Float[Array, "B H K"] | None,
    beta: Float[Array, "B H"] | None,
    precision: jax.lax.PrecisionLike,
) -> Float[Array, "B H *L K V"]:
    """exp(g) (I - beta k k^T) S; without k and beta, exp(g) S. Axes L: several states per head."""
    levels = state.ndim - 4
    state = state * jnp.exp(g).reshape(*g.shape, *[1] * (levels + 2))
    if k is None or beta is None:
        return state
    read = jnp.einsum("bhk,bh...kv->bh...v", k, state, precision=precision)
    erase = (beta[..., None] * k).reshape(*k.shape[:2], *[1] * levels, -1, 1)
    return state - erase * read[..., None, :]
