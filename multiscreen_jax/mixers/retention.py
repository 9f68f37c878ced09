"""Multi-scale retention, the mixer of RetNet (arXiv:2307.08621)."""

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from multiscreen_jax.layers.norms import NormThenGate
from multiscreen_jax.layers.rotary import Rotation, rotary_angles, rotate
from multiscreen_jax.layers.stack import mark_mixer_output
from multiscreen_jax.mixers.costs import ssd_flops
from multiscreen_jax.mixers.mixer import Context
from multiscreen_jax.mixers.recurrent import RecurrentMixer, carried, state_zeros
from pallas_kernels import retention
from pallas_kernels.common.numerics import accumulation_dtype
from pallas_kernels.linear_attention import retention_decays

if TYPE_CHECKING:
    from multiscreen_jax.models.retnet import RetNetConfig


class Retention(RecurrentMixer):
    """A state for each head that fades at a rate of its own, and a gated norm. (eq. 5-8)

        q, k, v = x W_Q, x W_K, x W_V                    rotary positions on q and k
        S_t     = (1 - 2^(-5-h)) S_{t-1} + k_t v_t^T     y_t = K^-0.5 S_t^T q_t
        out     = (RMSNorm(y) * silu(x W_G)) W_O         a norm for each head

    The state is kept in `promote_types(dtype, float32)`.
    """

    config: "RetNetConfig"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], layer: Any, context: Context
    ) -> tuple[Float[Array, "B T D"], Any]:
        c = self.config
        q = rotate(self.project("query", x, key_heads=c.num_heads, key=c.key_dim), context.prepared)
        k = rotate(self.project("key", x, key_heads=c.num_heads, key=c.key_dim), context.prepared)
        v = self.project("value", x, heads=c.num_heads, value=c.value_dim)
        gate = self.project("gate", x, heads=c.num_heads, value=c.value_dim)
        y, state = retention(
            q, k, v, retention_decays(c.num_heads, accumulation_dtype(v)),
            initial_state=None if layer is None else carried(layer["state"], context),
            return_state=layer is not None, segment_ids=context.segment_ids,
            implementation=c.implementation, precision=c.precision,
        )  # fmt: skip
        norm = NormThenGate(
            c.norm_eps, jnp.dtype(c.dtype), jnp.dtype(c.param_dtype), name="output_norm"
        )
        y = self.project_out("output", norm(mark_mixer_output(y), gate))
        return y, None if layer is None else {"state": state}

    @staticmethod
    def prepare(config: "RetNetConfig", positions: Int[Array, "B T"], dtype: jnp.dtype) -> Rotation:
        return rotary_angles(positions, config.key_dim, config.rope_theta, 1.0, dtype)

    @classmethod
    def empty_layer(
        cls, config: "RetNetConfig", batch: int, max_length: int, dtype: jnp.dtype
    ) -> dict[str, Array]:
        del max_length
        return {"state": state_zeros(config, batch, dtype)}

    @classmethod
    def parameter_count(cls, config: "RetNetConfig") -> int:
        return cls._weights(config) + config.value_dim

    @classmethod
    def _weights(cls, config: "RetNetConfig") -> int:
        c = config
        return c.model_dim * c.num_heads * (2 * c.key_dim + 3 * c.value_dim)

    @classmethod
    def forward_flops(cls, config: "RetNetConfig", length: int) -> float:
        c = config
        op = ssd_flops(length, c.num_heads, c.num_heads, c.key_dim, c.value_dim)
        return 2 * length * cls._weights(c) + op
