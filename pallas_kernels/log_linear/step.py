"""One token of the log-linear ops by a kernel: all levels in one pass over the state."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.common.documents import Documents
from pallas_kernels.linear_attention.api import repeat_groups, widen
from pallas_kernels.log_linear.levels import LogLinearState, bit_length
from pallas_kernels.log_linear.maps import Inputs
from pallas_kernels.log_linear.reference import log_linear_recurrence


class Merges(NamedTuple):
    """What a token does to the levels of its row; int32 [B] each.

    Attributes:
        held: bits of the levels that hold something before it.
        emptied: levels below become one; nothing precedes a first token.
        target: with this level; -1 if none.
        real: 0 for padding, which changes nothing.
    """

    held: Any  # of kernels, refs to what a program sees of them
    emptied: Any
    target: Any
    real: Any


class Token(NamedTuple):
    """A token's numbers, float32.

    Attributes:
        q, k: [B,H,K].
        write: [B,H,V], v or beta v.
        decay: [B,H], exp(g).
        beta: [B,H]; None if nothing is erased.
        scales: [B,H,J] of J levels.
    """

    q: Any  # of kernels, refs to what a program sees of them
    k: Any
    write: Any
    decay: Any
    beta: Any
    scales: Any


def log_linear_step(
    kernel: Any, inputs: Inputs, state: LogLinearState, documents: Documents | None
) -> tuple[Float[Array, "B 1 H V"], LogLinearState]:
    """The result and the state after a single token, T = 1; padding is zero.

        levels 0..z of the state become level z + 1, z the trailing zeros of the token's number
        S_l = exp(g) (S_l - beta k (k^T S_l))       without beta exp(g) S_l
        S_0 = beta k v^T                            y = sum_l lambda_l S_l^T q

    In float32. (Log-Linear Attention, arXiv:2506.04761, section 3.1.) The gradient is that of the
    recurrence.

    Args:
        kernel: (Token, levels [B,H,J,K,V], Merges) -> y [B,H,V] and levels.
    """
    q, k, v, g, beta, scales = inputs
    dtype = v.dtype
    q, k, v, g, beta, scales = widen(q, k, v, g, beta, scales, scale=1.0)
    real = jnp.ones(len(v), bool) if documents is None else documents.real[:, 0]
    q, k = repeat_groups(q, k, v)
    stepped: Any = _step(kernel, q, k, v, g, beta, scales, state.levels, state.length, real)
    y, levels = stepped
    return y.astype(dtype), LogLinearState(levels, state.length + real)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _step(kernel, q, k, v, g, beta, scales, levels, length, real):
    write = v if beta is None else beta[..., None] * v
    token = jax.tree.map(lambda x: x[:, 0], Token(q, k, write, jnp.exp(g), beta, scales))
    y, levels = kernel(token, levels, _merges(length, real, levels.shape[2]))
    return y[:, None], levels


def _merges(length: Array, real: Array, count: int) -> Merges:
    before = jnp.maximum(length - 1, 0)
    # The newest token is level 0; the last level has all beyond it.
    held = 1 | (before & (2 ** (count - 2) - 1 if count > 1 else 0)) << 1
    held |= (before >> max(count - 2, 0) > 0).astype(jnp.int32) << (count - 1)
    zeros = jnp.maximum(bit_length(length & -length) - 1, 0)
    first, target = length == 0, jnp.minimum(zeros + 1, count - 1)
    return Merges(
        held=jnp.where(first, 0, held),
        emptied=jnp.where(first, 0, target),
        target=jnp.where(first, -1, target),
        real=real.astype(jnp.int32),
    )


def _step_fwd(kernel, *inputs):
    return _step(kernel, *inputs), inputs


def _step_bwd(kernel, inputs, cotangents):
    *arrays, length, real = inputs
    documents = Documents(jnp.zeros((len(real), 1), jnp.int32), real[:, None])

    def recurrence(q, k, v, g, beta, scales, levels):
        state = LogLinearState(levels, length)
        y, state = log_linear_recurrence(q, k, v, g, beta, scales, state, documents)
        return y, state.levels

    return *jax.vjp(recurrence, *arrays)[1](cotangents), None, None


_step.defvjp(_step_fwd, _step_bwd)
