"""The Transformer that the Multiscreen paper compares with (arXiv:2604.01178 v1, appendix A).

    x_0 = W_E[token]
    y   = x_{l-1} + attention(norm(x_{l-1}))         LLaMA style: pre-norm, RMSNorm, RoPE
    x_l = y + swiglu(norm(y))                        l = 1 .. N
    z   = norm(x_N) W_E^T                            logits, tied unless the config says otherwise

The residual stream is kept in `promote_types(dtype, float32)`.
"""

import dataclasses

from multiscreen_jax import fields
from multiscreen_jax.layers.feed_forward import SwiGLUSpec
from multiscreen_jax.layers.initializers import Normal
from multiscreen_jax.mixers.attention import AttentionSpec
from multiscreen_jax.models.architecture import Architecture, Contract
from multiscreen_jax.models.decoder import Decoder, DecoderConfig
from multiscreen_jax.models.llama_names import llama
from multiscreen_jax.models.trunk import Layer, Stage

__all__ = ["Transformer", "TransformerConfig"]

_INIT_SCALE = 0.02


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
        attention_bias: the four projections of attention have one.
        final_norm_gain: the paper's counts have none.
    """

    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    feed_forward_dim: int | None = None
    rope_theta: float = 10000.0
    rope_factor: float = 1.0
    attention_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feed_forward_dim is None:
            object.__setattr__(self, "feed_forward_dim", 8 * self.model_dim // 3)
        fields.take(self, self.attention())
        fields.take(self, SwiGLUSpec(feed_forward_dim=self.feed_forward_dim))

    def attention(self) -> AttentionSpec:
        """The mixer of every layer."""
        return AttentionSpec(**self.own_fields(AttentionSpec)).fitted(self.model_dim)

    def init(self) -> Normal:
        return transformer_init(self.num_layers)

    def stages(self) -> tuple[Stage, ...]:
        feed_forward = SwiGLUSpec(feed_forward_dim=self.feed_forward_dim)
        return (Stage("layers", (Layer(self.attention(), feed_forward),), self.num_layers),)


def transformer_init(num_layers: int) -> Normal:
    """Normal(0.02), and 0.02 / sqrt(2 N) for the two matrices of each layer that write."""
    return Normal(_INIT_SCALE, _INIT_SCALE / (2 * num_layers) ** 0.5)


class Transformer(Decoder):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: TransformerConfig


_GPT2 = {"vocab_size": 50257}
# Of the models that checks build, here and in variants.
SMALL = {
    "vocab_size": 61, "model_dim": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
    "feed_forward_dim": 24,
}  # fmt: skip

ARCHITECTURE = Architecture(
    name="transformer",
    config=TransformerConfig,
    model=Transformer,
    presets={
        "8m": {**_GPT2, "num_layers": 6, "num_heads": 4, "model_dim": 128},
        "18m": {**_GPT2, "num_layers": 6, "num_heads": 8, "model_dim": 256},
        "45m": {**_GPT2, "num_layers": 6, "num_heads": 8, "model_dim": 512},
        "124m": {**_GPT2, "num_layers": 12, "num_heads": 12, "model_dim": 768},
        "353m": {**_GPT2, "num_layers": 24, "num_heads": 16, "model_dim": 1024},
    },
    paper="the baseline of Screening Is Enough, arXiv:2604.01178 v1, appendix A",
    sources=(llama("transformer/hf-llama", notes="LlamaForCausalLM of transformers."),),
    contract=Contract(fields=SMALL),
)  # fmt: skip
