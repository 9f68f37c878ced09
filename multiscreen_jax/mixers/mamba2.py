"""The state space layer of Mamba-2 (arXiv:2405.21060)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from multiscreen_jax.layers.norms import GateThenNorm
from multiscreen_jax.layers.stack import mark_mixer_output
from multiscreen_jax.mixers.costs import ssd_flops
from multiscreen_jax.mixers.mixer import Context
from multiscreen_jax.mixers.recurrent import (
    RecurrentMixer,
    carried,
    log_uniform_rate,
    state_zeros,
    window_zeros,
)
from pallas_kernels import ssd


class Mamba2Mixer(RecurrentMixer):
    """A state whose decay and step depend on the token. (sections 6 and 7)

        gate, value, key, query, step = x W              the released code's z, x, B, C, dt
        value, key, query = silu(conv(.))                short convolutions with bias
        dt  = softplus(step + step_bias)                 g = -exp(log_rate) dt
        S_t = exp(g_t) S_{t-1} + k_t (dt_t v_t)^T        y_t = S_t^T q_t + skip v_t
        out = RMSNorm(y * silu(gate)) W_O                over all heads of a group

    H heads have values, steps and states; keys and queries are shared by the H / G heads of each
    of G groups. Gates, norms and states are in `promote_types(dtype, float32)`. The log-linear
    form replaces `recur`.
    """

    rate_init = staticmethod(log_uniform_rate(1.0, 16.0))

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], layer: Any, context: Context
    ) -> tuple[Float[Array, "B T D"], Any]:
        c = self.config
        new = {}

        def convolved(name: str, **sizes: int) -> Array:
            y, conv = self.project(name, x, **sizes), f"{name}_conv"
            y, new[conv] = self.convolve(conv, y, tuple(sizes), layer, context, bias=True)
            return y

        gate = self.project("gate", x, heads=c.num_heads, value=c.value_dim)
        v = convolved("value", heads=c.num_heads, value=c.value_dim)
        k = convolved("key", key_heads=c.num_groups, key=c.key_dim)
        q = convolved("query", key_heads=c.num_groups, key=c.key_dim)
        step, g = self.step_and_decay(x, c.num_heads, self.rate_init)
        skip = self.weight("skip", nn.initializers.ones, (c.num_heads,), ("heads",), decay=False)
        v = v.astype(step.dtype)
        y, new["state"] = self.recur(
            x, q, k, step[..., None] * v, g,
            initial_state=None if layer is None else carried(layer["state"], context),
            return_state=layer is not None, segment_ids=context.segment_ids,
            implementation=c.implementation, precision=c.precision,
        )  # fmt: skip
        y = mark_mixer_output(y) + skip.astype(v.dtype)[:, None] * v
        norm = GateThenNorm(
            c.norm_eps, jnp.dtype(c.dtype), jnp.dtype(c.param_dtype), c.num_groups,
            name="output_norm",
        )  # fmt: skip
        return self.project_out("output", norm(y, gate)), None if layer is None else new

    def recur(self, x: Array, q: Array, k: Array, v: Array, g: Array, **how: Any) -> Any:
        """(y [B, T, H, V], the state after it)."""
        del x
        return ssd(q, k, v, g, **how)

    @classmethod
    def empty_state(cls, config: Any, batch: int, max_length: int, dtype: jnp.dtype) -> Any:
        del max_length
        return state_zeros(config, batch, dtype)

    @classmethod
    def empty_layer(
        cls, config: Any, batch: int, max_length: int, dtype: jnp.dtype
    ) -> dict[str, Any]:
        c = config
        keys = window_zeros(c, batch, c.num_groups, c.key_dim, dtype)
        return {
            "value_conv": window_zeros(c, batch, c.num_heads, c.value_dim, dtype),
            "key_conv": keys,
            "query_conv": keys,
            "state": cls.empty_state(c, batch, max_length, dtype),
        }

    @classmethod
    def gates(cls, config: Any) -> int:
        """Numbers for each head that are projected from x."""
        del config
        return 1

    @classmethod
    def _weights(cls, config: Any) -> int:
        c = config
        per_head = 3 * c.value_dim + cls.gates(c)
        return c.model_dim * (c.num_heads * per_head + 2 * c.num_groups * c.key_dim)

    @classmethod
    def _channels(cls, config: Any) -> int:
        return config.num_heads * config.value_dim + 2 * config.num_groups * config.key_dim

    @classmethod
    def parameter_count(cls, config: Any) -> int:
        c = config
        convolutions = cls._channels(c) * (c.conv_width + 1)
        return cls._weights(c) + convolutions + c.num_heads * (3 + c.value_dim)

    @classmethod
    def forward_flops(cls, config: Any, length: int) -> float:
        weights = cls._weights(config) + cls._channels(config) * config.conv_width
        return 2 * length * weights + cls.op_flops(config, length)

    @classmethod
    def op_flops(cls, config: Any, length: int) -> float:
        c = config
        return ssd_flops(length, c.num_heads, c.num_groups, c.key_dim, c.value_dim)
