"""Multi-scale retention, the mixer of RetNet (arXiv:2307.08621)."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from multiscreen_jax import fields
from multiscreen_jax.layers.branch import Common, Spec
from multiscreen_jax.layers.norms import NormThenGate
from multiscreen_jax.layers.rotary import Rotation, rotary_angles, rotate
from multiscreen_jax.layers.stack import mark_mixer_output
from multiscreen_jax.mixers.costs import ssd_flops
from multiscreen_jax.mixers.mixer import Context, Mixed
from multiscreen_jax.mixers.recurrent import (
    RecurrentMixer,
    carried,
    check_states,
    state_zeros,
)
from pallas_kernels import retention
from pallas_kernels.common.numerics import accumulation_dtype
from pallas_kernels.linear_attention import retention_decays


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetentionSpec(Spec):
    """Multi-scale retention.

    Attributes:
        num_heads, key_dim, value_dim: H, and K (even, for rotary pairs) and V of each head.
        rope_theta: base of the rotary frequencies.
        implementation: of the op, see `pallas_kernels`.
    """

    num_heads: int
    key_dim: int
    value_dim: int
    rope_theta: float = 10000.0
    implementation: str | tuple[str, ...] | None = None

    tree_name: ClassVar[str] = "mixer"

    def __post_init__(self) -> None:
        check_states(self)
        fields.positive_numbers(self, "rope_theta")
        if self.key_dim % 2:
            raise ValueError(f"key_dim must be even for rotary pairs, got {self.key_dim}")

    def build(self, common: Common, **how: Any) -> "Retention":
        return Retention(self, common, **how)


class Retention(RecurrentMixer):
    """A state for each head that fades at a rate of its own, and a gated norm. (eq. 5-8)

        q, k, v = x W_Q, x W_K, x W_V                    rotary positions on q and k
        S_t     = (1 - 2^(-5-h)) S_{t-1} + k_t v_t^T     y_t = K^-0.5 S_t^T q_t
        out     = (RMSNorm(y) * silu(x W_G)) W_O         a norm for each head

    The state is kept in `promote_types(dtype, float32)`.
    """

    spec: RetentionSpec

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], layer: Any, context: Context) -> Mixed:
        s, c = self.spec, self.common
        keys = {"key_heads": s.num_heads, "key": s.key_dim}
        values = {"heads": s.num_heads, "value": s.value_dim}
        q = rotate(self.project("query", x, **keys), context.prepared)
        k = rotate(self.project("key", x, **keys), context.prepared)
        v = self.project("value", x, **values)
        gate = self.project("gate", x, **values)
        y, state = retention(
            q, k, v, retention_decays(s.num_heads, accumulation_dtype(v)),
            initial_state=None if layer is None else carried(layer["state"], context),
            return_state=layer is not None, segment_ids=context.segment_ids,
            implementation=s.implementation, precision=c.precision,
        )  # fmt: skip
        norm = NormThenGate(*c.norm_settings, name="output_norm")
        y = self.project_out("output", norm(mark_mixer_output(y), gate))
        return Mixed(y, None if layer is None else {"state": state})

    def prepare(self, positions: Int[Array, "B T"], dtype: jnp.dtype) -> Rotation:
        return rotary_angles(positions, self.spec.key_dim, self.spec.rope_theta, 1.0, dtype)

    def empty_layer(self, batch: int, max_length: int, dtype: jnp.dtype) -> dict[str, Array]:
        del max_length
        return {"state": state_zeros(self.spec, batch, dtype)}

    def forward_flops(self, length: int) -> float:
        s = self.spec
        weights = self.common.model_dim * s.num_heads * (2 * s.key_dim + 3 * s.value_dim)
        op = ssd_flops(length, s.num_heads, s.num_heads, s.key_dim, s.value_dim)
        return 2 * length * weights + op
