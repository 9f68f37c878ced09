"""The Transformer that the Multiscreen paper compares with (arXiv:2604.01178 v1, appendix A).

    x_0 = W_E[token]
    y   = x_{l-1} + attention(norm(x_{l-1}))         LLaMA style: pre-norm, RMSNorm, RoPE
    x_l = y + swiglu(norm(y))                        l = 1 .. N
    z   = norm(x_N) W_E^T                            logits, tied unless the config says otherwise

The residual stream is kept in `promote_types(dtype, float32)`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from multiscreen_jax.cache import check_rows, place
from multiscreen_jax.layers.embedding import check_segments, check_tokens, lookup
from multiscreen_jax.layers.feed_forward import SwiGLU
from multiscreen_jax.layers.norms import RMSNorm
from multiscreen_jax.layers.positions import document_positions
from multiscreen_jax.layers.rotary import rotary_angles
from multiscreen_jax.layers.stack import LayerStack, check_remat, mark_mixer_output
from multiscreen_jax.mixers.attention import (
    Attention,
    AttentionCache,
    init_attention_cache,
    write_attention_cache,
)
from multiscreen_jax.models import fields
from multiscreen_jax.models.language_model import LanguageModel

PRESETS: dict[str, dict[str, int]] = {
    "8m": {"num_layers": 6, "num_heads": 4, "model_dim": 128},
    "18m": {"num_layers": 6, "num_heads": 8, "model_dim": 256},
    "45m": {"num_layers": 6, "num_heads": 8, "model_dim": 512},
    "124m": {"num_layers": 12, "num_heads": 12, "model_dim": 768},
    "353m": {"num_layers": 24, "num_heads": 16, "model_dim": 1024},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape and settings of a Transformer.

    Attributes:
        vocab_size: O.
        model_dim, num_layers, num_heads: D, N, H.
        num_kv_heads: G, a divisor of H; None is H.
        head_dim: K, even; None is D / H.
        feed_forward_dim: F; None is floor(8 D / 3).
        rope_theta: base of the rotary frequencies.
        rope_factor: positions are divided by it (position interpolation).
        norm_eps: of every RMSNorm.
        tie_embeddings: one matrix for input and output.
        final_norm_gain: a learned gain in the last norm (the paper's counts have none).
        trained_length: longest training sequence so far, in tokens; continued training updates it.
        dtype, param_dtype: of the products, and of the parameters.
        precision: of all products: None (the backend's default), "default", "high", "highest".
        remat: what the backward pass keeps, see `layers.stack.LayerStack`.
        unroll_layers: run layers in a Python loop, for debugging.
    """

    vocab_size: int
    model_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    feed_forward_dim: int | None = None
    rope_theta: float = 10000.0
    rope_factor: float = 1.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    final_norm_gain: bool = False
    trained_length: int | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str | None = None
    remat: str = "none"
    unroll_layers: bool = False

    def __post_init__(self) -> None:
        fields.positive_integers(self, "vocab_size", "model_dim", "num_layers", "num_heads")
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.head_dim is None:
            if self.model_dim % self.num_heads:
                raise ValueError(
                    f"model_dim must be a multiple of num_heads unless head_dim is given, got "
                    f"model_dim={self.model_dim}, num_heads={self.num_heads}"
                )
            object.__setattr__(self, "head_dim", self.model_dim // self.num_heads)
        if self.feed_forward_dim is None:
            object.__setattr__(self, "feed_forward_dim", 8 * self.model_dim // 3)
        fields.positive_integers(self, "num_kv_heads", "head_dim", "feed_forward_dim")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, got num_heads={self.num_heads}, "
                f"num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary pairs, got {self.head_dim}")
        fields.positive_numbers(self, "rope_theta", "rope_factor", "norm_eps")
        if self.trained_length is not None:
            fields.positive_integers(self, "trained_length")
        for field in ("dtype", "param_dtype"):
            object.__setattr__(self, field, fields.dtype_name(field, getattr(self, field)))
        fields.precision(self.precision)
        fields.booleans(self, "tie_embeddings", "final_norm_gain", "unroll_layers")
        check_remat(self.remat)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "TransformerConfig":
        """One of the paper's sizes: "8m", "18m", "45m", "124m", "353m" (with 50257 tokens)."""
        if str(name).lower() not in PRESETS:
            raise fields.unknown_name("Transformer preset", name, PRESETS)
        return cls(**{"vocab_size": 50257, **PRESETS[name.lower()], **overrides})

    @property
    def init_scale(self) -> float:
        """Standard deviation of the initial weights."""
        return 0.02

    @property
    def output_init_scale(self) -> float:
        """The same for the two projections of each layer that write to the residual stream."""
        return 0.02 / (2 * self.num_layers) ** 0.5

    def _weights_per_layer(self) -> int:
        heads = 2 * self.num_heads + 2 * self.num_kv_heads
        return self.model_dim * (heads * self.head_dim + 3 * self.feed_forward_dim)

    def parameter_count(self) -> int:
        tables = 1 if self.tie_embeddings else 2
        gains = 2 * self.num_layers + int(self.final_norm_gain)
        return (
            self.model_dim * (tables * self.vocab_size + gains)
            + self.num_layers * self._weights_per_layer()
        )

    def forward_flops(self, length: int) -> float:
        """FLOPs of one forward pass over one sequence (a multiply-add counts two).

        Projections and logits, plus 4 K for every head and every pair of a query and a key that
        is not in its future.
        """
        per_token = 2 * (
            self.num_layers * self._weights_per_layer() + self.vocab_size * self.model_dim
        )
        pairs = length * (length + 1) / 2 * self.num_layers * self.num_heads
        return float(per_token * length + 4 * self.head_dim * pairs)


class Table(nn.Module):
    """Rows of a vocabulary."""

    config: TransformerConfig

    def setup(self) -> None:
        c = self.config
        self.rows = self.param(
            "rows",
            nn.initializers.normal(c.init_scale),
            (c.vocab_size, c.model_dim),
            jnp.dtype(c.param_dtype),
        )


class Vocabulary(nn.Module):
    """The table tokens come in by and the one logits go out by, often the same."""

    config: TransformerConfig

    def setup(self) -> None:
        self.embedding = Table(self.config)
        if not self.config.tie_embeddings:
            self.unembedding = Table(self.config)

    def encode(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return lookup(self.embedding.rows, tokens)

    def output_rows(self) -> Float[Array, "O D"]:
        table = self.embedding if self.config.tie_embeddings else self.unembedding
        return table.rows.astype(jnp.dtype(self.config.dtype))


class TransformerLayer(nn.Module):
    """Pre-norm attention and pre-norm SwiGLU, each added to the residual stream."""

    config: TransformerConfig

    def setup(self) -> None:
        c = self.config
        dtypes = {"dtype": jnp.dtype(c.dtype), "param_dtype": jnp.dtype(c.param_dtype)}
        self.attention_norm = RMSNorm(c.norm_eps, **dtypes)
        self.attention = Attention(c)
        self.feed_forward_norm = RMSNorm(c.norm_eps, **dtypes)
        self.feed_forward = SwiGLU(
            c.model_dim, c.feed_forward_dim, c.init_scale, c.output_init_scale,
            **dtypes, precision=c.precision,
        )  # fmt: skip

    def __call__(self, x: Float[Array, "B T D"], layer: Any, shared: Any) -> tuple[Array, Any]:
        segment_ids, rotation, cache, chunk = shared
        cached = None if cache is None else (layer, cache, chunk)
        y, written = self.attention(self.attention_norm(x), segment_ids, rotation, cached)
        x = x + mark_mixer_output(y).astype(x.dtype)
        return x + self.feed_forward(self.feed_forward_norm(x)).astype(x.dtype), written


class Transformer(LanguageModel):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: TransformerConfig

    def setup(self) -> None:
        c = self.config
        self.vocabulary = Vocabulary(c)
        # Tables at the top of the tree; "unembedding" is also a method here, hence the module.
        nn.share_scope(self, self.vocabulary)
        self.layers = LayerStack(
            TransformerLayer, {"config": c}, c.num_layers, c.remat, c.unroll_layers
        )
        self.final_norm = RMSNorm(
            c.norm_eps, jnp.dtype(c.dtype), jnp.dtype(c.param_dtype), gain=c.final_norm_gain
        )

    def trunk(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        cache: AttentionCache | None = None,
    ) -> tuple[Float[Array, "B T D"], AttentionCache | None]:
        """The normalised output of the last layer [B, T, D], and the new cache."""
        c = self.config
        check_tokens(tokens, c.vocab_size)
        check_segments(segment_ids, tokens.shape)
        x = self.vocabulary.encode(tokens)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))

        def rotation(positions: Int[Array, "B T"]) -> Any:
            return rotary_angles(positions, c.head_dim, c.rope_theta, c.rope_factor, x.dtype)

        if cache is None:
            rows = 1 if segment_ids is None else tokens.shape[0]
            angles = rotation(document_positions(segment_ids, rows, tokens.shape[1]))
            x, _ = self.layers(x, None, (segment_ids, angles, None, None))
            return self.final_norm(x), None
        check_rows(cache.cursor, tokens.shape[0])
        chunk, cursor = place(cache.cursor, segment_ids, tokens.shape[1])
        # Layers read the one cache in place, by number, and hand back what is to be written.
        shared = (segment_ids, rotation(chunk.position), cache, chunk)
        x, (keys, values) = self.layers(x, jnp.arange(c.num_layers), shared)
        x = jnp.where(chunk.overflow[:, None, None], jnp.nan, self.final_norm(x))
        return x, write_attention_cache(cache, chunk, cursor, keys, values)

    def unembedding(self) -> Float[Array, "O D"]:
        """The rows whose products with the trunk's output are the logits."""
        return self.vocabulary.output_rows()

    def init_cache(
        self, params: Any, batch: int, max_length: int, dtype: Any = None
    ) -> AttentionCache:
        """An empty cache for `batch` rows of up to `max_length` tokens, in `dtype` (the model's).

        `params` is not needed here; other models size their caches by it.
        """
        del params
        dtype = fields.cache_dtype(self.config.dtype, dtype)
        return init_attention_cache(self.config, batch, max_length, dtype)
