"""DeltaNet, "Parallelizing Linear Transformers with the Delta Rule" (arXiv:2406.06484).

x = x + delta_net(norm(x))                       mixers/delta_net.py
x = x + swiglu(norm(x))
"""

import dataclasses

from multiscreen_jax.mixers.delta_net import DeltaNetSpec
from multiscreen_jax.models.architecture import Architecture, Contract
from multiscreen_jax.models.decoder import Decoder
from multiscreen_jax.models.fla_names import DELTA, fla
from multiscreen_jax.models.linear import SMALL, LinearConfig

__all__ = ["DeltaNet", "DeltaNetConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaNetConfig(LinearConfig):
    """Shape and settings of a DeltaNet, beside those of `LinearConfig`.

    Attributes:
        conv_width: of the short convolutions.
        output_gate: multiply the mixer's normalised output by silu(x W_G).
        negative_eigenvalues: beta in (0, 2) instead of (0, 1). (arXiv:2411.12537)
    """

    conv_width: int = 4
    output_gate: bool = False
    negative_eigenvalues: bool = False

    def mixer(self) -> DeltaNetSpec:
        return DeltaNetSpec(**self.own_fields(DeltaNetSpec))


class DeltaNet(Decoder):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: DeltaNetConfig


ARCHITECTURE = Architecture(
    name="deltanet",
    config=DeltaNetConfig,
    model=DeltaNet,
    presets={
        "tiny": {
            "vocab_size": 256, "model_dim": 64, "num_layers": 4, "num_heads": 2, "key_dim": 32,
            "value_dim": 32, "feed_forward_dim": 176,
        },
    },
    paper="Parallelizing Linear Transformers with the Delta Rule, arXiv:2406.06484",
    sources=(
        fla(
            "deltanet/fla",
            *DELTA,
            notes=(
                "DeltaNetForCausalLM of flash-linear-attention, with beta, SiLU and L2 norms of "
                "queries and keys. use_gate is our output_gate, allow_neg_eigval our "
                "negative_eigenvalues."
            ),
        ),
    ),
    contract=Contract(
        fields={
            **SMALL, "num_heads": 2, "feed_forward_dim": 24, "negative_eigenvalues": True,
        },
    ),
)  # fmt: skip
