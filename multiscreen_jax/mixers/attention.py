"""Grouped-query softmax attention with rotary positions, and its key-value cache."""

from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from multiscreen_jax.cache import Chunk, Cursor, new_cursor
from multiscreen_jax.layers.rotary import Rotation, rotate
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


class Attention(nn.Module):
    """y = concat_h(attention_h(x)) W_O, causal, without biases.

    Heads h of one group h // (H/G) share keys and values. Projections run in the config's dtype;
    rotation, scores and softmax in `promote_types(dtype, float32)`.
    """

    config: "TransformerConfig"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"] | None,
        rotation: Rotation,
        cached: tuple[Int[Array, ""], AttentionCache, Chunk] | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array] | None]:
        """The mixed tokens and, with `cached` (layer, cache, chunk), the entries to write."""
        c = self.config
        dtype = jnp.dtype(c.dtype)

        def weight(name: str, shape: tuple[int, ...], deviation: float) -> Array:
            normal = nn.initializers.normal(deviation)
            return self.param(name, normal, shape, jnp.dtype(c.param_dtype)).astype(dtype)

        def project(name: str, heads: int) -> Array:
            w = weight(name, (c.model_dim, heads, c.head_dim), c.init_scale)
            return jnp.einsum("btd,dhk->bthk", x, w, precision=c.precision)

        x = x.astype(dtype)
        q = rotate(project("query", c.num_heads), rotation)
        k = rotate(project("key", c.num_kv_heads), rotation)
        v = project("value", c.num_kv_heads)
        if cached is None:
            y = causal_attention(q, k, v, segment_ids, precision=c.precision)
        else:
            layer, cache, chunk = cached
            y = decode_attention(
                q, k, v, cache.keys, cache.values, layer, cache.cursor.start, cache.cursor.length,
                chunk.segment_ids, chunk.continues, precision=c.precision,
            )  # fmt: skip
        w = weight("output", (c.num_heads, c.head_dim, c.model_dim), c.output_init_scale)
        y = jnp.einsum("bthk,hkd->btd", y, w, precision=c.precision)
        return y, None if cached is None else (k, v)


def init_attention_cache(
    config: "TransformerConfig", batch: int, max_length: int, dtype: jnp.dtype
) -> AttentionCache:
    """An empty cache: 2 N B G max_length K numbers."""
    cursor = new_cursor(batch, max_length)
    shape = (config.num_layers, batch, config.num_kv_heads, max_length, config.head_dim)
    return AttentionCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), cursor)


def write_attention_cache(
    cache: AttentionCache,
    chunk: Chunk,
    cursor: Cursor,
    keys: Float[Array, "N B T G K"],
    values: Float[Array, "N B T G K"],
) -> AttentionCache:
    """The cache after `chunk`, all layers in one write; `cursor` is the one after it."""
    # Padding, and what does not fit, goes past the end, where the write is dropped.
    place = jnp.where(chunk.segment_ids != 0, chunk.index, cache.keys.shape[3])
    row = jnp.arange(place.shape[0])[:, None]

    def write(old: Array, new: Array) -> Array:
        # Indexed axes come first: [B, T, N, G, K].
        new = jnp.moveaxis(new.astype(old.dtype), 0, 2)
        return old.at[:, row, :, place].set(new, mode="drop")

    return AttentionCache(write(cache.keys, keys), write(cache.values, values), cursor)
