"""The state space layer of Mamba-2 (arXiv:2405.21060)."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from multiscreen_jax import fields
from multiscreen_jax.layers.branch import Common, Spec
from multiscreen_jax.layers.norms import GateThenNorm
from multiscreen_jax.layers.stack import mark_mixer_output
from multiscreen_jax.mixers.costs import ssd_flops
from multiscreen_jax.mixers.mixer import Context, Mixed
from multiscreen_jax.mixers.recurrent import (
    RecurrentMixer,
    carried,
    check_states,
    log_uniform_rate,
    state_zeros,
    window_zeros,
)
from pallas_kernels import ssd


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba2Spec(Spec):
    """The state space layer of Mamba-2.

    Attributes:
        num_heads, key_dim, value_dim: H, and K and V of each head: the paper's state size and head
            dimension.
        num_groups: G, a divisor of H: heads of a group share keys and queries.
        conv_width: of the short convolutions.
        implementation: of the op, see `pallas_kernels`.
    """

    num_heads: int
    key_dim: int
    value_dim: int
    num_groups: int = 1
    conv_width: int = 4
    implementation: str | tuple[str, ...] | None = None

    tree_name: ClassVar[str] = "mixer"

    def __post_init__(self) -> None:
        check_states(self)
        fields.positive_integers(self, "num_groups")
        if self.num_heads % self.num_groups:
            raise ValueError(
                f"num_heads must be a multiple of num_groups, got num_heads={self.num_heads}, "
                f"num_groups={self.num_groups}"
            )

    def build(self, common: Common, **how: Any) -> "Mamba2Mixer":
        return Mamba2Mixer(self, common, **how)


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

    spec: Mamba2Spec
    rate_init = staticmethod(log_uniform_rate(1.0, 16.0))

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], layer: Any, context: Context) -> Mixed:
        s, new = self.spec, {}

        def convolved(name: str, **sizes: int) -> Array:
            y, conv = self.project(name, x, **sizes), f"{name}_conv"
            y, new[conv] = self.convolve(conv, y, tuple(sizes), layer, context, bias=True)
            return y

        gate = self.project("gate", x, heads=s.num_heads, value=s.value_dim)
        v = convolved("value", heads=s.num_heads, value=s.value_dim)
        k = convolved("key", key_heads=s.num_groups, key=s.key_dim)
        q = convolved("query", key_heads=s.num_groups, key=s.key_dim)
        step, g = self.step_and_decay(x, s.num_heads, self.rate_init)
        skip = self.weight("skip", nn.initializers.ones, (s.num_heads,), ("heads",), decay=False)
        v = v.astype(step.dtype)
        y, new["state"] = self.recur(
            x, q, k, step[..., None] * v, g,
            initial_state=None if layer is None else carried(layer["state"], context),
            return_state=layer is not None, segment_ids=context.segment_ids,
            implementation=s.implementation, precision=self.common.precision,
        )  # fmt: skip
        y = mark_mixer_output(y) + skip.astype(v.dtype)[:, None] * v
        norm = GateThenNorm(*self.common.norm_settings, s.num_groups, name="output_norm")
        return Mixed(self.project_out("output", norm(y, gate)), None if layer is None else new)

    def recur(self, x: Array, q: Array, k: Array, v: Array, g: Array, **how: Any) -> Any:
        """(y [B, T, H, V], the state after it)."""
        del x
        return ssd(q, k, v, g, **how)

    def empty_state(self, batch: int, max_length: int, dtype: jnp.dtype) -> Any:
        del max_length
        return state_zeros(self.spec, batch, dtype)

    def empty_layer(self, batch: int, max_length: int, dtype: jnp.dtype) -> dict[str, Any]:
        s = self.spec
        keys = window_zeros(s, batch, s.num_groups, s.key_dim, dtype)
        return {
            "value_conv": window_zeros(s, batch, s.num_heads, s.value_dim, dtype),
            "key_conv": keys,
            "query_conv": keys,
            "state": self.empty_state(batch, max_length, dtype),
        }

    @property
    def gates(self) -> int:
        """Numbers for each head that are projected from x."""
        return 1

    def forward_flops(self, length: int) -> float:
        s = self.spec
        keys = 2 * s.num_groups * s.key_dim
        weights = self.common.model_dim * (s.num_heads * (3 * s.value_dim + self.gates) + keys)
        kernels = (s.num_heads * s.value_dim + keys) * s.conv_width
        return 2 * length * (weights + kernels) + self.op_flops(length)

    def op_flops(self, length: int) -> float:
        s = self.spec
        return ssd_flops(length, s.num_heads, s.num_groups, s.key_dim, s.value_dim)
