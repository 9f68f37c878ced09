"""Softmax over keys that arrive block by block: running maximum, normaliser and weighted sum."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# (maximum [B,G,Q,1], normaliser [B,G,Q,1], weighted sum of values [B,G,Q,K])
State = tuple[Array, Array, Array]


def online_start(batch: int, groups: int, queries: int, dim: int, dtype: jnp.dtype) -> State:
    """The state before any key."""
    # Finite, so that a block without any visible key does not make NaN of inf - inf.
    lowest = jnp.full((batch, groups, queries, 1), 0.5 * jnp.finfo(dtype).min, dtype)
    return (
        lowest,
        jnp.zeros((batch, groups, queries, 1), dtype),
        jnp.zeros((batch, groups, queries, dim), dtype),
    )


def online_update(
    state: State,
    q: Float[Array, "B G Q K"],
    k: Float[Array, "B G S K"],
    v: Float[Array, "B G S K"],
    visible: Bool[Array, "#B #G #Q S"] | None,
    scale: float,
    precision: jax.lax.PrecisionLike,
) -> State:
    """Take one block of keys in; `visible` None means all of it."""
    maximum, normaliser, weighted = state
    dtype = maximum.dtype
    scores = scale * jnp.einsum(
        "bgqk,bgsk->bgqs", q, k, precision=precision, preferred_element_type=dtype
    )
    if visible is not None:
        scores = jnp.where(visible, scores, 0.5 * jnp.finfo(dtype).min)
    new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=-1, keepdims=True))
    p = jnp.exp(scores - new_maximum)
    if visible is not None:  # a row that has seen no visible key yet has scores == maximum
        p = jnp.where(visible, p, 0)
    keep = jnp.exp(maximum - new_maximum)
    update = jnp.einsum(
        "bgqs,bgsk->bgqk", p.astype(v.dtype), v, precision=precision, preferred_element_type=dtype
    )
    return (
        new_maximum,
        normaliser * keep + jnp.sum(p, axis=-1, keepdims=True),
        weighted * keep + update,
    )


def online_result(state: State) -> tuple[Float[Array, "B G Q K"], Float[Array, "B G Q 1"]]:
    """(output, log of the normaliser); a query that saw no key gives zero and +large."""
    maximum, normaliser, weighted = state
    some = normaliser > 0
    total = jnp.where(some, normaliser, 1)
    log_total = jnp.where(some, maximum + jnp.log(total), 0.5 * jnp.finfo(maximum.dtype).max)
    return weighted / total, log_total
