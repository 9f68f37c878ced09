"""Gated DeltaNet, "Improving Mamba2 with Delta Rule" (arXiv:2412.06464).

x = x + gated_delta_net(norm(x))                 mixers/gated_delta_net.py
x = x + swiglu(norm(x))
"""

import dataclasses

from multiscreen_jax.mixers.gated_delta_net import GatedDeltaNetSpec
from multiscreen_jax.models.architecture import Architecture, Contract
from multiscreen_jax.models.decoder import Decoder
from multiscreen_jax.models.delta_net import DeltaNetConfig
from multiscreen_jax.models.fla_names import GATED_DELTA, fla
from multiscreen_jax.models.linear import SMALL, AttentionLayers, ScreeningLayers

__all__ = ["GatedDeltaNet", "GatedDeltaNetConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedDeltaNetConfig(DeltaNetConfig):
    """Shape and settings of a Gated DeltaNet: those of `DeltaNetConfig`, with an output gate."""

    output_gate: bool = True

    def mixer(self) -> GatedDeltaNetSpec:
        return GatedDeltaNetSpec(**self.own_fields(GatedDeltaNetSpec))


class GatedDeltaNet(Decoder):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: GatedDeltaNetConfig


_TINY = {
    "vocab_size": 256, "model_dim": 64, "num_layers": 4, "num_heads": 2, "key_dim": 24,
    "value_dim": 48, "feed_forward_dim": 176,
}  # fmt: skip
_THREE = ("mixer",) * 3  # every fourth layer is of another kind

ARCHITECTURE = Architecture(
    name="gdn",
    config=GatedDeltaNetConfig,
    model=GatedDeltaNet,
    presets={
        "tiny": _TINY,
        "attention-tiny": {
            **_TINY, "pattern": (*_THREE, "attention"), "attention": AttentionLayers(num_heads=4)
        },
        "screening-tiny": {
            **_TINY, "pattern": (*_THREE, "screening"),
            "screening": ScreeningLayers(num_heads=4, value_dim=32),
        },
        # The baseline of the Log-Linear Attention paper, 793M.
        "800m": {
            "vocab_size": 32000, "model_dim": 1536, "num_layers": 21, "num_heads": 6,
            "key_dim": 192, "value_dim": 384, "initializer_range": 0.006,
        },
    },
    paper="Gated Delta Networks, arXiv:2412.06464",
    sources=(
        fla(
            "gated_deltanet/fla",
            *GATED_DELTA,
            notes=(
                "GatedDeltaNetForCausalLM of flash-linear-attention. head_dim is our key_dim and "
                "head_dim * expand_v our value_dim; use_gate is our output_gate, allow_neg_eigval "
                "our negative_eigenvalues. More value heads than heads have no counterpart."
            ),
        ),
    ),
    contract=Contract(fields={**SMALL, "num_heads": 2, "feed_forward_dim": 24}),
)  # fmt: skip
