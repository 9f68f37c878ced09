"""RetNet, "Retentive Network" (arXiv:2307.08621), as flash-linear-attention builds it.

x = x + retention(norm(x))                       mixers/retention.py
x = x + swiglu(norm(x))
"""

import dataclasses

from multiscreen_jax.mixers.retention import RetentionSpec
from multiscreen_jax.models.architecture import Architecture, Contract
from multiscreen_jax.models.decoder import Decoder
from multiscreen_jax.models.fla_names import RETENTION, fla
from multiscreen_jax.models.linear import SMALL, LinearConfig

__all__ = ["RetNet", "RetNetConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetNetConfig(LinearConfig):
    """Shape and settings of a RetNet, beside those of `LinearConfig`.

    Attributes:
        rope_theta: base of the rotary frequencies.
    """

    rope_theta: float = 10000.0

    def mixer(self) -> RetentionSpec:
        return RetentionSpec(**self.own_fields(RetentionSpec))


class RetNet(Decoder):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: RetNetConfig


ARCHITECTURE = Architecture(
    name="retnet",
    config=RetNetConfig,
    model=RetNet,
    presets={
        "tiny": {
            "vocab_size": 256, "model_dim": 64, "num_layers": 4, "num_heads": 2, "key_dim": 32,
            "value_dim": 64, "feed_forward_dim": 128,
        },
    },
    paper="Retentive Network, arXiv:2307.08621",
    sources=(
        fla(
            "retnet/fla",
            *RETENTION,
            notes=(
                "RetNetForCausalLM of flash-linear-attention, with an output gate and without "
                "short convolutions; norm_eps and the number of heads are in its config only."
            ),
        ),
    ),
    contract=Contract(fields={**SMALL, "num_heads": 2, "feed_forward_dim": 24}),
)  # fmt: skip
