"""From logits to a token: temperature, then top-k, then top-p, then a draw."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def keep_top_k(logits: Float[Array, "*B O"], k: int) -> Float[Array, "*B O"]:
    """-inf for all but the k largest logits; ties with the k-th stay."""
    k = min(k, logits.shape[-1])
    kth = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits >= kth, logits, -jnp.inf)


def keep_top_p(logits: Float[Array, "*B O"], p: Float[Array, ""] | float) -> Float[Array, "*B O"]:
    """-inf outside the smallest set of most likely tokens whose probability reaches p.

    (Nucleus sampling, arXiv:1904.09751, section 3.1.) The most likely token always stays, and so do
    ties with the last one in the set.
    """
    descending = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # By rule, since sums are rounded: the first, however small p is, and all of them at p = 1.
    kept = (before < p) | (jnp.arange(logits.shape[-1]) == 0) | (p >= 1)
    smallest = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= smallest, logits, -jnp.inf)


def sample(
    logits: Float[Array, "B O"],
    keys: Key[Array, " B"],
    temperature: Float[Array, ""] | float,
    top_k: int | None = None,
    top_p: Float[Array, ""] | float | None = None,
) -> Int[Array, " B"]:
    """One token per row, row b drawn with keys[b] alone, so rows do not depend on each other."""
    # Relative to the largest, what overflows is -inf and never drawn; a temperature that is zero in
    # the logits' dtype (0 / 0) leaves the largest alone.
    relative = logits - jnp.max(logits, axis=-1, keepdims=True)
    logits = jnp.where(relative == 0, 0, relative / temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
