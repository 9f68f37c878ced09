"""RetNet, "Retentive Network" (arXiv:2307.08621), as flash-linear-attention builds it.

x = x + retention(norm(x))                       mixers/retention.py
x = x + swiglu(norm(x))
"""

import dataclasses
from typing import Any

from multiscreen_jax.mixers.retention import Retention
from multiscreen_jax.models import fields
from multiscreen_jax.models.decoder import Decoder
from multiscreen_jax.models.linear import LinearConfig, preset

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 256, "model_dim": 64, "num_layers": 4, "num_heads": 2, "key_dim": 32,
        "value_dim": 64, "feed_forward_dim": 128,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetNetConfig(LinearConfig):
    """Shape and settings of a RetNet, beside those of `LinearConfig`.

    Attributes:
        rope_theta: base of the rotary frequencies.
    """

    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.positive_numbers(self, "rope_theta")
        if self.key_dim % 2:
            raise ValueError(f"key_dim must be even for rotary pairs, got {self.key_dim}")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "RetNetConfig":
        """A named shape: "tiny"."""
        return preset(cls, "RetNet", PRESETS, name, overrides)

    @property
    def mixer_class(self) -> type[Retention]:
        return Retention


class RetNet(Decoder):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: RetNetConfig
