"""Scalable-Softmax, "Scalable-Softmax Is Superior for Attention" (arXiv:2501.19399).

    a_ts = softmax over s <= t of (s_h log n_t + b_h) q_t . k_s / sqrt(K)

n_t is the number of keys that token t sees: its position in its document, from 1. With plain
softmax the largest weight fades as the context grows; here it need not. s_h is learned for each
head and layer. b_h helps the fit and harms longer contexts (section 3.1), so it is an option.

All else is the Transformer's, see models/transformer.py.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from multiscreen_jax import fields
from multiscreen_jax.layers.branch import Common
from multiscreen_jax.mixers.attention import Attention, AttentionSpec
from multiscreen_jax.mixers.mixer import Context
from multiscreen_jax.models.architecture import Architecture, Contract
from multiscreen_jax.models.decoder import Decoder
from multiscreen_jax.models.llama_names import llama, row, settings
from multiscreen_jax.models.transformer import SMALL, TransformerConfig

__all__ = ["SSMax", "SSMaxConfig", "SSMaxSpec"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSMaxSpec(AttentionSpec):
    """Attention by Scalable-Softmax, beside the fields of `AttentionSpec`.

    Attributes:
        ssmax_scale: s_h before training; the author's package starts at 0.43.
        ssmax_bias: b_h is learned too, from 0; otherwise it is 0.
    """

    ssmax_scale: float = 0.43
    ssmax_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.positive_numbers(self, "ssmax_scale")
        fields.booleans(self, "ssmax_bias")

    def build(self, common: Common, **how: Any) -> "SSMaxAttention":
        return SSMaxAttention(self.fitted(common.model_dim), common, **how)


class SSMaxAttention(Attention):
    """The module of `SSMaxSpec`: queries are scaled, so that any softmax attention serves."""

    spec: SSMaxSpec

    def heads(self, x: Float[Array, "B T D"], context: Context) -> tuple[Array, Array, Array]:
        q, k, v = super().heads(x, context)
        wide = jnp.promote_types(q.dtype, jnp.float32)
        log_n = jnp.log(context.positions.astype(wide) + 1)
        factor = self._each("ssmax_scale", self.spec.ssmax_scale) * log_n[..., None]
        if self.spec.ssmax_bias:
            factor += self._each("ssmax_bias", 0.0)
        return (q * factor[..., None]).astype(q.dtype), k, v

    def _each(self, name: str, value: float) -> Float[Array, " H"]:
        init = nn.initializers.constant(value)
        return self.weight(name, init, (self.spec.num_heads,), ("heads",), decay=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSMaxConfig(TransformerConfig):
    """Shape and settings, beside those of `TransformerConfig`.

    Attributes:
        ssmax_scale, ssmax_bias: see `SSMaxSpec`.
    """

    ssmax_scale: float = 0.43
    ssmax_bias: bool = False

    def attention(self) -> SSMaxSpec:
        return SSMaxSpec(**self.own_fields(SSMaxSpec)).fitted(self.model_dim)


class SSMax(Decoder):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: SSMaxConfig


ARCHITECTURE = Architecture(
    name="ssmax",
    config=SSMaxConfig,
    model=SSMax,
    presets={"tiny": {"vocab_size": 256, "model_dim": 64, "num_layers": 4, "num_heads": 4}},
    paper="Scalable-Softmax Is Superior for Attention, arXiv:2501.19399",
    sources=(
        llama(
            "ssmax/hf-llama",
            row("self_attn.ssmax_s", "h", "attention/ssmax_scale"),
            row("self_attn.ssmax_b", "h", "attention/ssmax_bias"),
            settings=lambda config: settings(config) | {"ssmax_bias": config["ssmax_bias"]},
            notes="LlamaForCausalLM of transformers with s and b of every head beside o_proj.",
            recorded="ssmax_decoder",
        ),
    ),
    contract=Contract(fields=SMALL),
)
