"""Grouped-query softmax attention with rotary positions, and its key-value cache."""

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from multiscreen_jax.cache import Chunk, Cursor, check_made, new_cursor
from multiscreen_jax.layers.rotary import Rotation, rotary_angles, rotate
from multiscreen_jax.layers.stack import mark_mixer_output
from multiscreen_jax.mixers.mixer import Context, Mixer
from pallas_kernels.attention import causal_attention, decode_attention

if TYPE_CHECKING:
    from multiscreen_jax.models.transformer import TransformerConfig


@struct.dataclass
class AttentionCache:
    """Keys (rotated) and values of all layers.

    Attributes:
        keys, values: [N, B, G, S, K]; row b holds tokens 0 <= s < cursor.length[b].
        cursor: progress of each row; its limit is S.
    """

    keys: Float[Array, "N B G S K"]
    values: Float[Array, "N B G S K"]
    cursor: Cursor


class Attention(Mixer):
    """y = concat_h(attention_h(x)) W_O, causal, without biases.

    Heads h of one group h // (H/G) share keys and values. Projections run in the config's dtype;
    rotation, scores and softmax in `promote_types(dtype, float32)`.
    """

    config: "TransformerConfig"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], layer: Int[Array, ""] | None, context: Context
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array] | None]:
        """The mixed tokens and, with a cache, the entries to write."""
        c = self.config
        shared = {"key_heads": c.num_kv_heads, "key": c.head_dim}
        q = rotate(self.project("query", x, heads=c.num_heads, key=c.head_dim), context.prepared)
        k = rotate(self.project("key", x, **shared), context.prepared)
        v = self.project("value", x, **shared)
        cache, chunk = context.cache, context.chunk
        if chunk is None:
            y = causal_attention(q, k, v, context.segment_ids, precision=c.precision)
        else:
            y = decode_attention(
                q, k, v, cache.keys, cache.values, layer, cache.cursor.start, cache.cursor.length,
                chunk.segment_ids, chunk.continues, precision=c.precision,
            )  # fmt: skip
        y = mark_mixer_output(self.project_out("output", y, "key"))
        return y, None if chunk is None else (k, v)

    @staticmethod
    def prepare(
        config: "TransformerConfig", positions: Int[Array, "B T"], dtype: jnp.dtype
    ) -> Rotation:
        c = config
        return rotary_angles(positions, c.head_dim, c.rope_theta, c.rope_factor, dtype)

    @classmethod
    def init_cache(
        cls,
        config: "TransformerConfig",
        params: Any,
        layers: int,
        batch: int,
        max_length: int,
        dtype: jnp.dtype,
    ) -> AttentionCache:
        """An empty cache: 2 N B G max_length K numbers."""
        del params
        cursor = new_cursor(batch, max_length)
        shape = (layers, batch, config.num_kv_heads, max_length, config.head_dim)
        return AttentionCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), cursor)

    @classmethod
    def check_cache(cls, config: "TransformerConfig", layers: int, cache: Any) -> None:
        dtype = jnp.dtype(config.dtype)
        check_made(cache, lambda *sizes: cls.init_cache(config, None, layers, *sizes, dtype))

    @classmethod
    def split_cache(cls, cache: AttentionCache) -> tuple[Int[Array, "N"], AttentionCache]:
        """Layers read the one cache in place, by number, and hand back what is to be written."""
        return jnp.arange(cache.keys.shape[0]), cache

    @classmethod
    def write_cache(
        cls, cache: AttentionCache, chunk: Chunk, cursor: Cursor, written: tuple[Array, Array]
    ) -> AttentionCache:
        """All layers in one write; `written` are keys and values [N, B, T, G, K]."""
        # Padding, and what does not fit, goes past the end, where the write is dropped.
        place = jnp.where(chunk.segment_ids != 0, chunk.index, cache.keys.shape[3])
        row = jnp.arange(place.shape[0])[:, None]

        def write(old: Array, new: Array) -> Array:
            # Indexed axes come first: [B, T, N, G, K].
            new = jnp.moveaxis(new.astype(old.dtype), 0, 2)
            return old.at[:, row, :, place].set(new, mode="drop")

        keys, values = written
        return AttentionCache(write(cache.keys, keys), write(cache.values, values), cursor)

    @classmethod
    def parameter_count(cls, config: "TransformerConfig") -> int:
        heads = 2 * config.num_heads + 2 * config.num_kv_heads
        return config.model_dim * heads * config.head_dim

    @classmethod
    def forward_flops(cls, config: "TransformerConfig", length: int) -> float:
        """Projections, plus 4 K for every head and every query with a key not in its future."""
        pairs = length * (length + 1) / 2
        products = 4 * config.num_heads * config.head_dim * pairs
        return 2 * length * cls.parameter_count(config) + products
