"""Grouped-query softmax attention with rotary positions."""

import dataclasses
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from multiscreen_jax import fields
from multiscreen_jax.layers.branch import Common, Spec
from multiscreen_jax.layers.rotary import Rotation, rotary_angles, rotate
from multiscreen_jax.layers.stack import mark_mixer_output
from multiscreen_jax.mixers.mixer import Context, Mixed
from multiscreen_jax.mixers.tokens import TokenMixer
from pallas_kernels.attention import causal_attention, decode_attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionSpec(Spec):
    """Softmax attention with rotary positions.

    Attributes:
        num_heads: H.
        num_kv_heads: G, a divisor of H; None is H.
        head_dim: K, even; None is D / H.
        rope_theta: base of the rotary frequencies.
        rope_factor: positions are divided by it (position interpolation).
        attention_bias: all four projections have one.
    """

    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    rope_theta: float = 10000.0
    rope_factor: float = 1.0
    attention_bias: bool = False

    tree_name: ClassVar[str] = "attention"

    def __post_init__(self) -> None:
        fields.positive_integers(self, "num_heads")
        for field in ("num_kv_heads", "head_dim"):
            if getattr(self, field) is not None:
                fields.positive_integers(self, field)
        if self.num_heads % (self.num_kv_heads or 1):
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, got num_heads={self.num_heads}, "
                f"num_kv_heads={self.num_kv_heads}"
            )
        fields.positive_numbers(self, "rope_theta", "rope_factor")
        fields.booleans(self, "attention_bias")

    def fitted(self, model_dim: int) -> Self:
        """The same with G and K as they are in a model of this width."""
        if self.head_dim is None and model_dim % self.num_heads:
            raise ValueError(
                f"model_dim must be a multiple of num_heads unless head_dim is given, got "
                f"model_dim={model_dim}, num_heads={self.num_heads}"
            )
        head_dim = self.head_dim or model_dim // self.num_heads
        if head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary pairs, got {head_dim}")
        kv_heads = self.num_kv_heads or self.num_heads
        return dataclasses.replace(self, num_kv_heads=kv_heads, head_dim=head_dim)

    def build(self, common: Common, **how: Any) -> "Attention":
        return Attention(self.fitted(common.model_dim), common, **how)


class Attention(TokenMixer):
    """y = concat_h(attention_h(x)) W_O, causal.

    Heads h of one group h // (H/G) share keys and values. Projections run in the model's dtype;
    rotation, scores and softmax in `promote_types(dtype, float32)`.

    A variant overrides one of the three steps: `heads` before attention, `attend` itself, or
    `combine` after it.
    """

    spec: AttentionSpec

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], layer: Int[Array, ""] | None, context: Context
    ) -> Mixed:
        q, k, v = self.heads(x, context)
        y = self.combine(x, self.attend(q, k, v, layer, context))
        y = mark_mixer_output(self.project_out("output", y, "key", bias=self.spec.attention_bias))
        written = None if context.chunk is None else {"keys": k, "values": v}
        return Mixed(y, written, self.given(v))

    def heads(
        self, x: Float[Array, "B T D"], context: Context
    ) -> tuple[Float[Array, "B T H K"], Float[Array, "B T G K"], Float[Array, "B T G K"]]:
        """Queries and keys, rotated, and values, as they are kept."""
        s, bias = self.spec, self.spec.attention_bias
        q = self.project("query", x, bias=bias, heads=self.query_heads, key=s.head_dim)
        k, v = (
            self.project(name, x, bias=bias, key_heads=s.num_kv_heads, key=s.head_dim)
            for name in ("key", "value")
        )
        return rotate(q, context.prepared), rotate(k, context.prepared), v

    def attend(
        self,
        q: Float[Array, "B T H K"],
        k: Float[Array, "B T G K"],
        v: Float[Array, "B T G K"],
        layer: Int[Array, ""] | None,
        context: Context,
    ) -> Float[Array, "B T H K"]:
        """Softmax attention over these tokens and those in the cache."""
        cache, cursor, chunk = context.cache, context.cursor, context.chunk
        precision = self.common.precision
        if chunk is None:
            return causal_attention(q, k, v, context.segment_ids, precision=precision)
        return decode_attention(
            q, k, v, cache["keys"], cache["values"], layer, cursor.start, cursor.length,
            chunk.segment_ids, chunk.continues, precision=precision,
        )  # fmt: skip

    def combine(
        self, x: Float[Array, "B T D"], y: Float[Array, "B T H K"]
    ) -> Float[Array, "B T H K"]:
        """Heads as the output projection takes them."""
        del x
        return y

    def given(self, v: Float[Array, "B T G K"]) -> dict[str, Array]:
        """Arrays that later stages get of this layer, by name."""
        del v
        return {}

    @property
    def query_heads(self) -> int:
        """How many heads ask."""
        return self.spec.num_heads

    def prepare(self, positions: Int[Array, "B T"], dtype: jnp.dtype) -> Rotation:
        s = self.spec
        return rotary_angles(positions, s.head_dim, s.rope_theta, s.rope_factor, dtype)

    def entries(self) -> dict[str, tuple[int, int]]:
        shape = self.spec.num_kv_heads, self.spec.head_dim
        return {"keys": shape, "values": shape}

    def forward_flops(self, length: int) -> float:
        """Projections, plus 4 K for every head and every query with a key not in its future."""
        s = self.spec
        heads = self.query_heads + s.num_heads + 2 * s.num_kv_heads
        pairs = length * (length + 1) / 2
        projections = 2 * length * self.common.model_dim * heads * s.head_dim
        return projections + 4 * self.query_heads * s.head_dim * pairs
