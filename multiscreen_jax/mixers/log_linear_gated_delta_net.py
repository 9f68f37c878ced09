"""The mixer of Log-Linear Gated DeltaNet (arXiv:2506.04761, section 3.4)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from multiscreen_jax.layers.branch import Common
from multiscreen_jax.mixers.costs import log_linear_delta_flops
from multiscreen_jax.mixers.gated_delta_net import GatedDeltaNetMixer, GatedDeltaNetSpec
from multiscreen_jax.mixers.log_linear import (
    Levels,
    empty_levels,
    level_limit,
    level_scales,
    level_settings,
    level_step_flops,
)
from pallas_kernels import log_linear_gated_delta_rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogLinearGatedDeltaNetSpec(Levels, GatedDeltaNetSpec):
    """Log-Linear Gated DeltaNet: the fields of `GatedDeltaNetSpec`, and `Levels`."""

    def build(self, common: Common, **how: Any) -> "LogLinearGatedDeltaNetMixer":
        return LogLinearGatedDeltaNetMixer(self, common, **how)


class LogLinearGatedDeltaNetMixer(GatedDeltaNetMixer):
    """Gated DeltaNet that keeps the past in O(log T) states, by age, each with a weight.

        lambda = softplus(level_gain * (x W_level))
        y_t    = sum over levels l of lambda_t[l] S_t[l]^T q_t

    Queries are not scaled by K^-0.5 here: the authors divide lambda by the same number.
    """

    spec: LogLinearGatedDeltaNetSpec

    def recur(self, x: Array, q: Array, k: Array, v: Array, beta: Array, **how: Any) -> Any:
        settings = level_settings(self.spec, x, how["segment_ids"])
        return log_linear_gated_delta_rule(
            q, k, v, self.decay(x), beta, level_scales(self, x), **settings, **how
        )

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
        return log_linear_delta_flops(length, s.num_heads, s.key_dim, s.value_dim)

    def decode_flops(self, context: int) -> float:
        """A key is looked up and erased in every state, and every state is read."""
        states = level_step_flops(self.spec, products=3)
        return super().decode_flops(context) + states
