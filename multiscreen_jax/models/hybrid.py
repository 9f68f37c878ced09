"""Decoders of any layers: any mixer beside any other, odd first layers, and a tail.

    HybridConfig(
        vocab_size=256, model_dim=64, num_layers=6,
        first=(Layer(AttentionSpec(num_heads=4), SwiGLUSpec(feed_forward_dim=256)),),
        pattern=(Layer(GatedDeltaNetSpec(...), ...), Layer(Mamba2Spec(...)), ...),
    )

What is left of the depth after whole patterns is the pattern's beginning: 5 layers of a pattern of
three are three and two.
"""

import dataclasses

from multiscreen_jax import fields
from multiscreen_jax.layers.feed_forward import SwiGLUSpec
from multiscreen_jax.layers.initializers import NormalAndUniform
from multiscreen_jax.layers.residuals import NoNorm
from multiscreen_jax.mixers import (
    AttentionSpec,
    GatedDeltaNetSpec,
    Mamba2Spec,
    RetentionSpec,
    ScreeningSpec,
)
from multiscreen_jax.models.architecture import Architecture, Contract
from multiscreen_jax.models.decoder import Decoder, DecoderConfig
from multiscreen_jax.models.trunk import Layer, Stage, stages_of

__all__ = ["Hybrid", "HybridConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HybridConfig(DecoderConfig):
    """Shape and settings of a decoder of any layers, beside those of `DecoderConfig`.

    Attributes:
        pattern: the layers that are repeated, in order.
        first: layers before them, once.
        initializer_range: standard deviation of the initial weights, but for those that write to
            the residual stream, which follow `layers.initializers.NormalAndUniform`.
    """

    pattern: tuple[Layer, ...]
    first: tuple[Layer, ...] = ()
    final_norm_gain: bool = True
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.positive_numbers(self, "initializer_range")
        for name in ("pattern", "first"):
            layers = getattr(self, name)
            if not isinstance(layers, tuple | list) or not all(
                isinstance(layer, Layer) for layer in layers
            ):
                raise ValueError(f"{name} must be a tuple of Layer, got {layers!r}")
            object.__setattr__(self, name, tuple(layers))
        for stage in self.stages():
            stage.mixers(self.common)  # checks that they fit this model

    def init(self) -> NormalAndUniform:
        branches = sum(
            (1 + (layer.feed_forward is not None)) * stage.repeats
            for stage in self.stages()
            for layer in stage.pattern
        )
        return NormalAndUniform(self.initializer_range, branches)

    def stages(self) -> tuple[Stage, ...]:
        return stages_of(self.num_layers, self.pattern, self.first)


class Hybrid(Decoder):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: HybridConfig


_WIDE = SwiGLUSpec(feed_forward_dim=24)
_FIRST = RetentionSpec(num_heads=2, key_dim=4, value_dim=6)
_TILES = ScreeningSpec(num_heads=2, key_dim=4, value_dim=6, window_threshold=9.0)

ARCHITECTURE = Architecture(
    name="hybrid",
    config=HybridConfig,
    model=Hybrid,
    presets={},
    paper="none: whatever its layers follow",
    # An odd first layer, four kinds beside each other, and a tail of two.
    contract=Contract(
        fields={
            "vocab_size": 61, "model_dim": 16, "num_layers": 7, "norm_eps": 1e-6,
            "first": (Layer(_FIRST, SwiGLUSpec(feed_forward_dim=8)),),
            "pattern": (
                Layer(GatedDeltaNetSpec(num_heads=2, key_dim=6, value_dim=5), _WIDE),
                Layer(Mamba2Spec(num_heads=4, key_dim=6, value_dim=5)),
                Layer(AttentionSpec(num_heads=4, num_kv_heads=2), _WIDE),
                Layer(_TILES, residual=NoNorm()),
            ),
        },
        tolerance=2e-4,
    ),
)  # fmt: skip
