"""The mixer of Log-Linear Mamba-2 (arXiv:2506.04761, section 3.3)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from multiscreen_jax.layers.branch import Common
from multiscreen_jax.mixers.costs import log_linear_ssd_flops
from multiscreen_jax.mixers.log_linear import (
    Levels,
    empty_levels,
    level_limit,
    level_scales,
    level_settings,
    level_step_flops,
)
from multiscreen_jax.mixers.mamba2 import Mamba2Mixer, Mamba2Spec
from multiscreen_jax.mixers.recurrent import log_counting_rate
from pallas_kernels import log_linear_ssd


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogLinearMamba2Spec(Levels, Mamba2Spec):
    """Log-Linear Mamba-2: the fields of `Mamba2Spec`, and `Levels`."""

    def build(self, common: Common, **how: Any) -> "LogLinearMamba2Mixer":
        return LogLinearMamba2Mixer(self, common, **how)


class LogLinearMamba2Mixer(Mamba2Mixer):
    """Mamba-2 that keeps the past in O(log T) states, by age, each with a weight.

    lambda = softplus(level_gain * (x W_level))
    y_t    = sum over levels l of lambda_t[l] S_t[l]^T q_t + skip v_t
    """

    spec: LogLinearMamba2Spec
    rate_init = staticmethod(log_counting_rate)

    def recur(self, x: Array, q: Array, k: Array, v: Array, g: Array, **how: Any) -> Any:
        settings = level_settings(self.spec, x, how["segment_ids"])
        return log_linear_ssd(q, k, v, g, level_scales(self, x), **settings, **how)

    @property
    def document_limit(self) -> tuple[int, str] | None:
        return level_limit(self.spec)

    def empty_state(self, batch: int, max_length: int, dtype: jnp.dtype) -> Any:
        return empty_levels(self.spec, batch, max_length, dtype)

    @property
    def gates(self) -> int:
        return super().gates + self.spec.num_levels

    def op_flops(self, length: int) -> float:
        s = self.spec
        return log_linear_ssd_flops(length, s.num_heads, s.num_groups, s.key_dim, s.value_dim)

    def decode_flops(self, context: int) -> float:
        """Every state is read."""
        states = level_step_flops(self.spec, products=1)
        return super().decode_flops(context) + states
