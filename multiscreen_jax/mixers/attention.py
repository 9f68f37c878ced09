"""Grouped-query softmax attention with rotary positions, and its key-value cache."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from multiscreen_jax import fields
from multiscreen_jax.cache import Chunk, Cursor
from multiscreen_jax.layers.branch import Common, Spec
from multiscreen_jax.layers.rotary import Rotation, rotary_angles, rotate
from multiscreen_jax.layers.stack import mark_mixer_output
from multiscreen_jax.mixers.mixer import Context, Mixed, Mixer
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
    """

    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    rope_theta: float = 10000.0
    rope_factor: float = 1.0

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

    def fitted(self, model_dim: int) -> "AttentionSpec":
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


@struct.dataclass
class AttentionCache:
    """Keys (rotated) and values of all layers.

    Attributes:
        keys, values: [N, B, G, S, K]; row b holds tokens 0 <= s < cursor.length[b], and S is the
            cursor's limit.
    """

    keys: Float[Array, "N B G S K"]
    values: Float[Array, "N B G S K"]


class Attention(Mixer):
    """y = concat_h(attention_h(x)) W_O, causal, without biases.

    Heads h of one group h // (H/G) share keys and values. Projections run in the model's dtype;
    rotation, scores and softmax in `promote_types(dtype, float32)`.
    """

    spec: AttentionSpec

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], layer: Int[Array, ""] | None, context: Context
    ) -> Mixed:
        s, precision = self.spec, self.common.precision
        shared = {"key_heads": s.num_kv_heads, "key": s.head_dim}
        q = rotate(self.project("query", x, heads=s.num_heads, key=s.head_dim), context.prepared)
        k = rotate(self.project("key", x, **shared), context.prepared)
        v = self.project("value", x, **shared)
        cache, cursor, chunk = context.cache, context.cursor, context.chunk
        if chunk is None:
            y = causal_attention(q, k, v, context.segment_ids, precision=precision)
        else:
            y = decode_attention(
                q, k, v, cache.keys, cache.values, layer, cursor.start, cursor.length,
                chunk.segment_ids, chunk.continues, precision=precision,
            )  # fmt: skip
        y = mark_mixer_output(self.project_out("output", y, "key"))
        return Mixed(y, None if chunk is None else (k, v))

    def prepare(self, positions: Int[Array, "B T"], dtype: jnp.dtype) -> Rotation:
        s = self.spec
        return rotary_angles(positions, s.head_dim, s.rope_theta, s.rope_factor, dtype)

    def init_cache(
        self, params: Any, layers: int, batch: int, max_length: int, dtype: jnp.dtype
    ) -> tuple[AttentionCache, int]:
        """2 N B G max_length K zeros."""
        del params
        shape = (layers, batch, self.spec.num_kv_heads, max_length, self.spec.head_dim)
        return AttentionCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)), max_length

    def split_cache(self, part: AttentionCache) -> tuple[Int[Array, "N"], AttentionCache]:
        """Layers read the one cache in place, by number, and hand back what is to be written."""
        return jnp.arange(part.keys.shape[0]), part

    def write_cache(
        self, part: AttentionCache, chunk: Chunk, cursor: Cursor, written: tuple[Array, Array]
    ) -> AttentionCache:
        """All layers in one write; `written` are keys and values [N, B, T, G, K]."""
        del cursor
        # Padding, and what does not fit, goes past the end, where the write is dropped.
        place = jnp.where(chunk.segment_ids != 0, chunk.index, part.keys.shape[3])
        row = jnp.arange(place.shape[0])[:, None]

        def write(old: Array, new: Array) -> Array:
            # Indexed axes come first: [B, T, N, G, K].
            new = jnp.moveaxis(new.astype(old.dtype), 0, 2)
            return old.at[:, row, :, place].set(new, mode="drop")

        keys, values = written
        return AttentionCache(write(part.keys, keys), write(part.values, values))

    def forward_flops(self, length: int) -> float:
        """Projections, plus 4 K for every head and every query with a key not in its future."""
        s = self.spec
        weights = self.common.model_dim * (2 * s.num_heads + 2 * s.num_kv_heads) * s.head_dim
        pairs = length * (length + 1) / 2
        return 2 * length * weights + 4 * s.num_heads * s.head_dim * pairs
