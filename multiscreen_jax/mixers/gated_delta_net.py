"""The gated delta rule, the mixer of Gated DeltaNet (arXiv:2412.06464)."""

from typing import Any

from jaxtyping import Array

from multiscreen_jax.mixers.delta_net import DeltaNetMixer
from multiscreen_jax.mixers.recurrent import log_uniform_rate
from pallas_kernels import gated_delta_rule


class GatedDeltaNetMixer(DeltaNetMixer):
    """DeltaNet whose state also fades. (eq. 10, section 3.4)

        g   = -exp(log_rate) softplus(x W_step + step_bias)
        S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T

    The rest is `DeltaNetMixer`, with an output gate.
    """

    def recur(self, x: Array, q: Array, k: Array, v: Array, beta: Array, **how: Any) -> Any:
        return gated_delta_rule(q, k, v, self.decay(x), beta, **how)

    def decay(self, x: Array) -> Array:
        """g [B, T, H]."""
        return self.step_and_decay(x, self.config.num_heads, log_uniform_rate(0.0, 16.0))[1]

    @classmethod
    def gates(cls, config: Any) -> int:
        return super().gates(config) + 1

    @classmethod
    def parameter_count(cls, config: Any) -> int:
        return super().parameter_count(config) + 2 * config.num_heads
