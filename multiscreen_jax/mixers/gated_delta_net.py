"""The gated delta rule, the mixer of Gated DeltaNet (arXiv:2412.06464)."""

import dataclasses
from typing import Any

from jaxtyping import Array

from multiscreen_jax.layers.branch import Common
from multiscreen_jax.mixers.delta_net import DeltaNetMixer, DeltaNetSpec
from multiscreen_jax.mixers.recurrent import log_uniform_rate
from pallas_kernels import gated_delta_rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedDeltaNetSpec(DeltaNetSpec):
    """The gated delta rule: the fields of `DeltaNetSpec`, with an output gate."""

    output_gate: bool = True

    def build(self, common: Common, **how: Any) -> "GatedDeltaNetMixer":
        return GatedDeltaNetMixer(self, common, **how)


class GatedDeltaNetMixer(DeltaNetMixer):
    """DeltaNet whose state also fades. (eq. 10, section 3.4)

        g   = -exp(log_rate) softplus(x W_step + step_bias)
        S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T

    The rest is `DeltaNetMixer`, with an output gate.
    """

    spec: GatedDeltaNetSpec

    def recur(self, x: Array, q: Array, k: Array, v: Array, beta: Array, **how: Any) -> Any:
        return gated_delta_rule(q, k, v, self.decay(x), beta, **how)

    def decay(self, x: Array) -> Array:
        """g [B, T, H]."""
        return self.step_and_decay(x, self.spec.num_heads, log_uniform_rate(0.0, 16.0))[1]

    @property
    def gates(self) -> int:
        return super().gates + 1
