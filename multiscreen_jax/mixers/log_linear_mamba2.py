"""The mixer of Log-Linear Mamba-2 (arXiv:2506.04761, section 3.3)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from multiscreen_jax.mixers.costs import log_linear_ssd_flops
from multiscreen_jax.mixers.log_linear import (
    empty_levels,
    level_scales,
    level_settings,
    level_step_flops,
)
from multiscreen_jax.mixers.mamba2 import Mamba2Mixer
from multiscreen_jax.mixers.recurrent import log_counting_rate
from pallas_kernels import log_linear_ssd


class LogLinearMamba2Mixer(Mamba2Mixer):
    """Mamba-2 that keeps the past in O(log T) states, by age, each with a weight.

    lambda = softplus(level_gain * (x W_level))
    y_t    = sum over levels l of lambda_t[l] S_t[l]^T q_t + skip v_t
    """

    rate_init = staticmethod(log_counting_rate)

    def recur(self, x: Array, q: Array, k: Array, v: Array, g: Array, **how: Any) -> Any:
        settings = level_settings(self.config, x, how["segment_ids"])
        return log_linear_ssd(q, k, v, g, level_scales(self, x), **settings, **how)

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
        return log_linear_ssd_flops(length, c.num_heads, c.num_groups, c.key_dim, c.value_dim)

    @classmethod
    def decode_flops(cls, config: Any, context: int) -> float:
        """Every state is read."""
        states = level_step_flops(config, products=1)
        return super().decode_flops(config, context) + states
