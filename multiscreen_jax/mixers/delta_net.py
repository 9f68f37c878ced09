"""The delta rule with short convolutions, the mixer of DeltaNet (arXiv:2406.06484)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from multiscreen_jax.layers.norms import NormThenGate, RMSNorm, l2_normalize
from multiscreen_jax.layers.stack import mark_mixer_output
from multiscreen_jax.mixers.costs import delta_flops
from multiscreen_jax.mixers.mixer import Context
from multiscreen_jax.mixers.recurrent import (
    RecurrentMixer,
    carried,
    state_zeros,
    window_zeros,
)
from pallas_kernels import delta_rule

CONVOLVED = ("query", "key", "value")


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

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], layer: Any, context: Context
    ) -> tuple[Float[Array, "B T D"], Any]:
        c = self.config
        new = {}

        def convolved(name: str, **sizes: int) -> Array:
            y, conv = self.project(name, x, **sizes), f"{name}_conv"
            y, new[conv] = self.convolve(conv, y, tuple(sizes), layer, context, bias=False)
            return y

        q = l2_normalize(convolved("query", key_heads=c.num_heads, key=c.key_dim))
        k = l2_normalize(convolved("key", key_heads=c.num_heads, key=c.key_dim))
        v = convolved("value", heads=c.num_heads, value=c.value_dim)
        beta = jax.nn.sigmoid(self.project_gate("beta", x, heads=c.num_heads))
        if c.negative_eigenvalues:
            beta = 2 * beta
        y, new["state"] = self.recur(
            x, q, k, v, beta,
            initial_state=None if layer is None else carried(layer["state"], context),
            return_state=layer is not None, segment_ids=context.segment_ids,
            implementation=c.implementation, precision=c.precision,
        )  # fmt: skip
        y = self._normalize(x, mark_mixer_output(y))
        return self.project_out("output", y), None if layer is None else new

    def recur(self, x: Array, q: Array, k: Array, v: Array, beta: Array, **how: Any) -> Any:
        """(y [B, T, H, V], the state after it)."""
        del x
        return delta_rule(q, k, v, beta, **how)

    def _normalize(self, x: Array, y: Array) -> Array:
        c = self.config
        settings = (c.norm_eps, jnp.dtype(c.dtype), jnp.dtype(c.param_dtype))
        if not c.output_gate:
            return RMSNorm(*settings, axis="value", name="output_norm")(y)
        gate = self.project("gate", x, heads=c.num_heads, value=c.value_dim)
        return NormThenGate(*settings, name="output_norm")(y, gate)

    @classmethod
    def empty_state(cls, config: Any, batch: int, max_length: int, dtype: jnp.dtype) -> Any:
        del max_length
        return state_zeros(config, batch, dtype)

    @classmethod
    def empty_layer(
        cls, config: Any, batch: int, max_length: int, dtype: jnp.dtype
    ) -> dict[str, Any]:
        dims = {"query": config.key_dim, "key": config.key_dim, "value": config.value_dim}
        windows = {
            f"{name}_conv": window_zeros(config, batch, config.num_heads, dim, dtype)
            for name, dim in dims.items()
        }
        return {**windows, "state": cls.empty_state(config, batch, max_length, dtype)}

    @classmethod
    def gates(cls, config: Any) -> int:
        """Numbers for each head that are projected from x."""
        del config
        return 1

    @classmethod
    def _weights(cls, config: Any) -> int:
        c = config
        values = 3 if c.output_gate else 2
        per_head = 2 * c.key_dim + values * c.value_dim + cls.gates(c)
        return c.model_dim * c.num_heads * per_head

    @classmethod
    def _kernels(cls, config: Any) -> int:
        c = config
        return c.num_heads * (2 * c.key_dim + c.value_dim) * c.conv_width

    @classmethod
    def parameter_count(cls, config: Any) -> int:
        return cls._weights(config) + cls._kernels(config) + config.value_dim

    @classmethod
    def forward_flops(cls, config: Any, length: int) -> float:
        return 2 * length * (cls._weights(config) + cls._kernels(config)) + cls.op_flops(
            config, length
        )

    @classmethod
    def op_flops(cls, config: Any, length: int) -> float:
        return delta_flops(length, config.num_heads, config.key_dim, config.value_dim)
