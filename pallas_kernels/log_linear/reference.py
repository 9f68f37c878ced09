"""Log-linear attention as a scan over tokens: the oracle, and the form for single tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.common.documents import Documents, document_starts
from pallas_kernels.linear_attention.decode import additive_write, transition
from pallas_kernels.log_linear.levels import LogLinearState, merge


def log_linear_recurrence(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"],
    beta: Float[Array, "B T H"] | None,
    scales: Float[Array, "B T H L"],
    state: LogLinearState,
    documents: Documents | None,
    precision: jax.lax.PrecisionLike = "highest",
) -> tuple[Float[Array, "B T H V"], LogLinearState]:
    """Merge, decay, write to level 0, read all levels; padding does none of it."""
    batch, length = v.shape[:2]
    starts, real = jnp.zeros((batch, length), bool), jnp.ones((batch, length), bool)
    if documents is not None:
        starts, real = document_starts(documents), documents.real

    def step(state: LogLinearState, token: Any) -> tuple[LogLinearState, Array]:
        q, k, v, g, beta, scales, starts, real = token
        index = jnp.where(starts, 0, state.length)
        levels = merge(jnp.where(starts[:, None, None, None, None], 0, state.levels), index)
        levels = transition(levels, g, k, beta, precision)
        levels = levels.at[:, :, 0].add(
            additive_write(k, v if beta is None else beta[..., None] * v)
        )
        y = jnp.einsum("bhl,bhk,bhlkv->bhv", scales, q, levels, precision=precision)
        levels = jnp.where(real[:, None, None, None, None], levels, state.levels)
        return LogLinearState(levels, jnp.where(real, index + 1, state.length)), y

    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, k, v, g, beta, scales, starts, real))
    state, y = jax.lax.scan(step, state, tokens)
    return jnp.moveaxis(y, 0, 1), state
