"""The mixer of Log-Linear Gated DeltaNet (arXiv:2506.04761, section 3.4)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from multiscreen_jax.mixers.costs import log_linear_delta_flops
from multiscreen_jax.mixers.gated_delta_net import GatedDeltaNetMixer
from multiscreen_jax.mixers.log_linear import (
    empty_levels,
    level_scales,
    level_settings,
    level_step_flops,
)
from pallas_kernels import log_linear_gated_delta_rule


class LogLinearGatedDeltaNetMixer(GatedDeltaNetMixer):
    """Gated DeltaNet that keeps the past in O(log T) states, by age, each with a weight.

        lambda = softplus(level_gain * (x W_level))
        y_t    = sum over levels l of lambda_t[l] S_t[l]^T q_t

    Queries are not scaled by K^-0.5 here: the authors divide lambda by the same number.
    """

    def recur(self, x: Array, q: Array, k: Array, v: Array, beta: Array, **how: Any) -> Any:
        settings = level_settings(self.config, x, how["segment_ids"])
        return log_linear_gated_delta_rule(
            q, k, v, self.decay(x), beta, level_scales(self, x), **settings, **how
        )

    @classmethod
    def empty_state(cls, config: Any, batch: int, max_length: int, dtype: jnp.dtype) -> Any:
        return empty_levels(config, batch, max_length, dtype)

    @classmethod
    def gates(cls, config: Any) -> int:
        return super().gates(config) + config.num_levels

    @classmethod
    def parameter_count(cls, config: Any) -> int:
        return super().parameter_count(config) + config.num_heads * config.num_levels

    @classmethod
    def op_flops(cls, config: Any, length: int) -> float:
        c = config
        return log_linear_delta_flops(length, c.num_heads, c.key_dim, c.value_dim)

    @classmethod
    def decode_flops(cls, config: Any, context: int) -> float:
        """A key is looked up and erased in every state, and every state is read."""
        states = level_step_flops(config, products=3)
        return super().decode_flops(config, context) + states
