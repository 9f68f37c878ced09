"""The delta rule with short convolutions, the mixer of DeltaNet (arXiv:2406.06484)."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from multiscreen_jax import fields
from multiscreen_jax.layers.branch import Common, Spec
from multiscreen_jax.layers.norms import NormThenGate, l2_normalize
from multiscreen_jax.layers.stack import mark_mixer_output
from multiscreen_jax.mixers.costs import delta_flops
from multiscreen_jax.mixers.mixer import Context, Mixed
from multiscreen_jax.mixers.recurrent import (
    RecurrentMixer,
    carried,
    check_states,
    state_zeros,
    window_zeros,
)
from pallas_kernels import delta_rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaNetSpec(Spec):
    """The delta rule with short convolutions.

    Attributes:
        num_heads, key_dim, value_dim: H, and K and V of each head.
        conv_width: of the short convolutions.
        output_gate: multiply the normalised output by silu(x W_G).
        negative_eigenvalues: beta in (0, 2) instead of (0, 1). (arXiv:2411.12537)
        implementation: of the op, see `pallas_kernels`.
    """

    num_heads: int
    key_dim: int
    value_dim: int
    conv_width: int = 4
    output_gate: bool = False
    negative_eigenvalues: bool = False
    implementation: str | tuple[str, ...] | None = None

    tree_name: ClassVar[str] = "mixer"

    def __post_init__(self) -> None:
        check_states(self)
        fields.booleans(self, "output_gate", "negative_eigenvalues")

    def build(self, common: Common, **how: Any) -> "DeltaNetMixer":
        return DeltaNetMixer(self, common, **how)


class DeltaNetMixer(RecurrentMixer):
    """Each token replaces what the state holds for its key. (eq. 4, section 3.4)

        q, k, v = silu(conv(x W))                        short convolutions
        q, k    = q / |q|, k / |k|                       beta = sigmoid(x W_beta)
        S_t     = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T
        y_t     = K^-0.5 S_t^T q_t
        out     = RMSNorm(y) W_O                         a norm for each head

    With `output_gate` the norm's result is multiplied by silu(x W_G). Gates, norms and states are
    in `promote_types(dtype, float32)`. Its gated and log-linear forms replace `recur`.
    """

    spec: DeltaNetSpec

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], layer: Any, context: Context) -> Mixed:
        s, new = self.spec, {}

        def convolved(name: str, **sizes: int) -> Array:
            y, conv = self.project(name, x, **sizes), f"{name}_conv"
            y, new[conv] = self.convolve(conv, y, tuple(sizes), layer, context, bias=False)
            return y

        q = l2_normalize(convolved("query", key_heads=s.num_heads, key=s.key_dim))
        k = l2_normalize(convolved("key", key_heads=s.num_heads, key=s.key_dim))
        v = convolved("value", heads=s.num_heads, value=s.value_dim)
        beta = jax.nn.sigmoid(self.project_gate("beta", x, heads=s.num_heads))
        if s.negative_eigenvalues:
            beta = 2 * beta
        y, new["state"] = self.recur(
            x, q, k, v, beta,
            initial_state=None if layer is None else carried(layer["state"], context),
            return_state=layer is not None, segment_ids=context.segment_ids,
            implementation=s.implementation, precision=self.common.precision,
        )  # fmt: skip
        y = self._normalize(x, mark_mixer_output(y))
        return Mixed(self.project_out("output", y), None if layer is None else new)

    def recur(self, x: Array, q: Array, k: Array, v: Array, beta: Array, **how: Any) -> Any:
        """(y [B, T, H, V], the state after it)."""
        del x
        return delta_rule(q, k, v, beta, **how)

    def _normalize(self, x: Array, y: Array) -> Array:
        s, c = self.spec, self.common
        if not s.output_gate:
            return c.norm("output_norm", axis="value")(y)
        gate = self.project("gate", x, heads=s.num_heads, value=s.value_dim)
        return NormThenGate(*c.norm_settings, name="output_norm")(y, gate)

    def empty_state(self, batch: int, max_length: int, dtype: jnp.dtype) -> Any:
        del max_length
        return state_zeros(self.spec, batch, dtype)

    def empty_layer(self, batch: int, max_length: int, dtype: jnp.dtype) -> dict[str, Any]:
        s = self.spec
        dims = {"query": s.key_dim, "key": s.key_dim, "value": s.value_dim}
        windows = {
            f"{name}_conv": window_zeros(s, batch, s.num_heads, dim, dtype)
            for name, dim in dims.items()
        }
        return {**windows, "state": self.empty_state(batch, max_length, dtype)}

    @property
    def gates(self) -> int:
        """Numbers for each head that are projected from x."""
        return 1

    def forward_flops(self, length: int) -> float:
        s = self.spec
        values = 3 if s.output_gate else 2
        weights = self.common.model_dim * (2 * s.key_dim + values * s.value_dim + self.gates)
        kernels = (2 * s.key_dim + s.value_dim) * s.conv_width
        return 2 * length * s.num_heads * (weights + kernels) + self.op_flops(length)

    def op_flops(self, length: int) -> float:
        return delta_flops(length, self.spec.num_heads, self.spec.key_dim, self.spec.value_dim)
