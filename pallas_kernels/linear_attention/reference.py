"""The linear family as a scan over tokens: the oracle, and the form for single tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.common.documents import Documents, document_starts
from pallas_kernels.linear_attention.decode import additive_write, transition


def recurrence(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"] | None,
    beta: Float[Array, "B T H"] | None,
    state: Float[Array, "B H K V"],
    documents: Documents | None,
    precision: jax.lax.PrecisionLike = "highest",
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """S_t = A_t S_{t-1} + beta_t k_t v_t^T, y_t = S_t^T q_t; the result and the last state.

    A_t = exp(g_t) (I - beta_t k_t k_t^T); without `beta` it is exp(g_t), and the write k_t v_t^T.
    """
    batch, length, heads = v.shape[:3]
    if g is None:
        g = jnp.zeros((batch, length, heads), q.dtype)
    starts = jnp.zeros((batch, length), bool) if documents is None else document_starts(documents)

    def step(state: Array, token: tuple[Any, ...]) -> tuple[Array, Array]:
        q, k, v, g, beta, starts = token
        state = jnp.where(starts[:, None, None, None], 0, state)
        write = additive_write(k, v if beta is None else beta[..., None] * v)
        state = transition(state, g, k, beta, precision) + write
        return state, jnp.einsum("bhk,bhkv->bhv", q, state, precision=precision)

    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, k, v, g, beta, starts))
    state, y = jax.lax.scan(step, state, tokens)
    return jnp.moveaxis(y, 0, 1), state
