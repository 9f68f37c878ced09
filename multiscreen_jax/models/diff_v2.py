"""Differential Transformer V2 (microsoft/unilm, commit 31646c58): attention less attention.

    a_1 .. a_2H = softmax attention of 2 H query heads over G heads of keys and values
    o_h = a_2h - sigmoid(x w_h) a_2h+1           both read the same keys
    y   = concat_h(o_h) W_O

What both maps of a pair attend to, noise, cancels. V1 (arXiv:2410.05258) has the same idea with
narrower heads, a norm of every head, and one learned factor a layer.

All else is the Transformer's, see models/transformer.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float

from multiscreen_jax.layers.branch import Common
from multiscreen_jax.mixers.attention import Attention, AttentionSpec
from multiscreen_jax.models.architecture import Architecture, Contract
from multiscreen_jax.models.decoder import Decoder
from multiscreen_jax.models.llama_names import ATTENTION, llama, row
from multiscreen_jax.models.transformer import SMALL, TransformerConfig

__all__ = ["DiffV2", "DiffV2Config", "DiffV2Spec"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffV2Spec(AttentionSpec):
    """Differential attention: `num_heads` is H, the pairs; fields as of `AttentionSpec`."""

    def build(self, common: Common, **how: Any) -> "DiffV2Attention":
        return DiffV2Attention(self.fitted(common.model_dim), common, **how)


class DiffV2Attention(Attention):
    """The module of `DiffV2Spec`. Its cache is that of attention with H heads."""

    spec: DiffV2Spec

    @property
    def query_heads(self) -> int:
        return 2 * self.spec.num_heads

    def combine(
        self, x: Float[Array, "B T D"], y: Float[Array, "B T H2 K"]
    ) -> Float[Array, "B T H K"]:
        factor = jax.nn.sigmoid(self.project_gate("factor", x, heads=self.spec.num_heads))
        pairs = y.reshape(*y.shape[:2], self.spec.num_heads, 2, y.shape[-1])
        return pairs[..., 0, :] - factor[..., None] * pairs[..., 1, :]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffV2Config(TransformerConfig):
    """Shape and settings, those of `TransformerConfig`; `num_heads` is H."""

    def attention(self) -> DiffV2Spec:
        return DiffV2Spec(**self.own_fields(DiffV2Spec)).fitted(self.model_dim)


class DiffV2(Decoder):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: DiffV2Config


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our fields from the arguments of unilm's layer, which knows no vocabulary and no depth."""
    shape = {name: config[name] for name in ("num_heads", "num_kv_heads", "head_dim", "rope_theta")}
    return {"model_dim": config["d_model"], **shape}


ARCHITECTURE = Architecture(
    name="diff-v2",
    config=DiffV2Config,
    model=DiffV2,
    presets={"tiny": {"vocab_size": 256, "model_dim": 64, "num_layers": 4, "num_heads": 4}},
    paper="Differential Transformer V2, microsoft/unilm; V1 is arXiv:2410.05258",
    sources=(
        llama(
            "diff-v2/unilm",
            row("self_attn.lambda_proj.weight", "h d", "attention/factor", "d h"),
            attention=(
                # Its rotary pairs are neighbours, ours are half a head apart.
                row("self_attn.q_proj.weight", "(q c 2) d", "attention/query", "d q (2 c)"),
                row("self_attn.k_proj.weight", "(g c 2) d", "attention/key", "d g (2 c)"),
                *ATTENTION[2:4],
            ),
            settings=settings,
            notes="MultiheadFlashDiffV2 of microsoft/unilm, commit 31646c58, in Llama's layers.",
            recorded="diff_v2",
        ),
    ),
    contract=Contract(fields=SMALL),
)
