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

from multiscreen_jax.layers.feed_forward import SwiGLU
from multiscreen_jax.mixers.attention import Attention
from multiscreen_jax.models import fields
from multiscreen_jax.models.decoder import Branch, Decoder, DecoderConfig, LayerPlan

PRESETS: dict[str, dict[str, int]] = {
    "8m": {"num_layers": 6, "num_heads": 4, "model_dim": 128},
    "18m": {"num_layers": 6, "num_heads": 8, "model_dim": 256},
    "45m": {"num_layers": 6, "num_heads": 8, "model_dim": 512},
    "124m": {"num_layers": 12, "num_heads": 12, "model_dim": 768},
    "353m": {"num_layers": 24, "num_heads": 16, "model_dim": 1024},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(DecoderConfig):
    """Shape and settings of a Transformer, beside those of `DecoderConfig`.

    Attributes:
        num_heads: H.
        num_kv_heads: G, a divisor of H; None is H.
        head_dim: K, even; None is D / H.
        feed_forward_dim: F; None is floor(8 D / 3).
        rope_theta: base of the rotary frequencies.
        rope_factor: positions are divided by it (position interpolation).
        final_norm_gain: the paper's counts have none.
    """

    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    feed_forward_dim: int | None = None
    rope_theta: float = 10000.0
    rope_factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.positive_integers(self, "num_heads")
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
        fields.positive_numbers(self, "rope_theta", "rope_factor")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "TransformerConfig":
        """One of the paper's sizes: "8m", "18m", "45m", "124m", "353m" (with 50257 tokens)."""
        if str(name).lower() not in PRESETS:
            raise fields.unknown_name("Transformer preset", name, PRESETS)
        return cls(**{"vocab_size": 50257, **PRESETS[name.lower()], **overrides})

    @property
    def output_init_scale(self) -> float:
        """Standard deviation of the two matrices of each layer that write to the stream."""
        return self.init_scale / (2 * self.num_layers) ** 0.5

    def output_init(self, rank: int) -> Any:
        return nn.initializers.normal(self.output_init_scale)

    def layer_plans(self) -> tuple[LayerPlan, ...]:
        attention = Branch("attention", Attention, self)
        return (LayerPlan(attention, Branch("feed_forward", SwiGLU, self)),)


class Transformer(Decoder):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: TransformerConfig
