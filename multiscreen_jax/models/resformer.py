"""ResFormer, "Value Residual Learning" (arXiv:2410.17897): all layers see the first one's values.

    V'_1 = V_1
    V'_l = (V_1 + V_l) / 2          l > 1, where V_l = x_{l-1} W_V; attention reads V'_l

All else is the Transformer's, see models/transformer.py.
"""

import dataclasses
from typing import Any, ClassVar

from jaxtyping import Array, Float

from multiscreen_jax.layers.branch import Common
from multiscreen_jax.layers.feed_forward import SwiGLUSpec
from multiscreen_jax.mixers.attention import Attention, AttentionSpec
from multiscreen_jax.mixers.mixer import Context
from multiscreen_jax.models.architecture import Architecture, Contract
from multiscreen_jax.models.decoder import Decoder
from multiscreen_jax.models.llama_names import llama
from multiscreen_jax.models.transformer import SMALL, TransformerConfig
from multiscreen_jax.models.trunk import Layer, Stage, stages_of

__all__ = ["ResFormer", "ResFormerConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstSpec(AttentionSpec):
    """Attention that gives its values to later stages."""

    def build(self, common: Common, **how: Any) -> "FirstAttention":
        return FirstAttention(self.fitted(common.model_dim), common, **how)


class FirstAttention(Attention):
    """The module of `FirstSpec`."""

    def given(self, v: Float[Array, "B T G K"]) -> dict[str, Array]:
        return {"values": v}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaterSpec(AttentionSpec):
    """Attention over the mean of its own values and the first layer's."""

    share: ClassVar[float] = 0.5  # of the first layer's, as released

    def build(self, common: Common, **how: Any) -> "LaterAttention":
        return LaterAttention(self.fitted(common.model_dim), common, **how)


class LaterAttention(Attention):
    """The module of `LaterSpec`; the cache keeps the mean, so decoding needs nothing more."""

    spec: LaterSpec

    def heads(self, x: Float[Array, "B T D"], context: Context) -> tuple[Array, Array, Array]:
        q, k, v = super().heads(x, context)
        return q, k, v + self.spec.share * (context.given["values"] - v)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResFormerConfig(TransformerConfig):
    """Shape and settings, those of `TransformerConfig`; at least two layers."""

    def stages(self) -> tuple[Stage, ...]:
        feed_forward = SwiGLUSpec(feed_forward_dim=self.feed_forward_dim)
        first, later = (
            Layer(spec(**self.own_fields(AttentionSpec)), feed_forward)
            for spec in (FirstSpec, LaterSpec)
        )
        return stages_of(self.num_layers, (later,), first=(first,))


class ResFormer(Decoder):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: ResFormerConfig


ARCHITECTURE = Architecture(
    name="resformer",
    config=ResFormerConfig,
    model=ResFormer,
    presets={"tiny": {"vocab_size": 256, "model_dim": 64, "num_layers": 4, "num_heads": 4}},
    paper="Value Residual Learning, arXiv:2410.17897",
    sources=(
        llama(
            "resformer/hf",
            notes="LlamaForCausalLM of Zcchill/Value-Residual-Learning, commit 95652f64.",
            recorded="resformer",
        ),
    ),
    contract=Contract(fields={**SMALL, "num_layers": 3}),
)
