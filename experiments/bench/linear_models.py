"""Sizes of the linear family's ops in models, and one decoded token of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import log_linear_gated_delta_rule, log_linear_ssd
from pallas_kernels.log_linear import LogLinearState

LEVELS = 15  # of the released models


class Model(NamedTuple):
    """Sizes of an op in a model."""

    groups: int
    heads: int
    key_dim: int
    value_dim: int
    delta: bool


MODELS = {
    "Mamba-2 800M": Model(1, 48, 128, 64, False),
    "GDN 800M": Model(6, 6, 192, 384, True),
    "Mamba-2 tiny": Model(1, 4, 32, 32, False),
    "GDN tiny": Model(4, 4, 32, 32, True),
    "RetNet small": Model(4, 4, 64, 128, False),
}


def decoded_token(
    model: Model, batch: int, implementation: str
) -> tuple[Callable[..., Any], list[jax.ShapeDtypeStruct]]:
    """A step of the log-linear op and the shapes of its arguments, the states the last but one."""
    groups, heads, key_dim, value_dim, delta = model
    f32, bf16 = jnp.float32, jnp.bfloat16

    def decode(q, k, v, g, beta, scales, levels, length):
        how = {
            "initial_state": LogLinearState(levels, length), "return_state": True,
            "implementation": implementation,
        }  # fmt: skip
        if delta:
            y, state = log_linear_gated_delta_rule(q, k, v, g, beta, scales, **how)
        else:
            y, state = log_linear_ssd(q, k, v, g, scales, **how)
        return y, state.levels

    shapes = [
        ((1, groups, key_dim), bf16), ((1, groups, key_dim), bf16), ((1, heads, value_dim), bf16),
        ((1, heads), f32), ((1, heads), f32), ((1, heads, LEVELS), f32),
        ((heads, LEVELS, key_dim, value_dim), f32), ((), jnp.int32),
    ]  # fmt: skip
    return decode, [jax.ShapeDtypeStruct((batch, *shape), dtype) for shape, dtype in shapes]


def state_bytes(model: Model, batch: int) -> int:
    return batch * model.heads * LEVELS * model.key_dim * model.value_dim * 4
