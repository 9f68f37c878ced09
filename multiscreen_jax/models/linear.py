"""What the architectures of the linear family share: their config, and patterns with other layers.

    pattern = ("mixer", "mixer", "mixer", "attention")      every fourth layer attends

"mixer" is the architecture's own. Attention and screening layers are those of `Transformer` and
`Multiscreen`, initialised as there, but inside this skeleton: with a norm before them, and followed
by this architecture's feed-forward.
"""

import dataclasses
from typing import Any

import flax.linen as nn

from multiscreen_jax.layers.feed_forward import SwiGLU
from multiscreen_jax.mixers.attention import Attention
from multiscreen_jax.mixers.mixer import Mixer
from multiscreen_jax.mixers.screening import ScreeningTiles
from multiscreen_jax.models import fields
from multiscreen_jax.models.decoder import Branch, DecoderConfig, LayerPlan
from multiscreen_jax.models.multiscreen import MultiscreenConfig
from multiscreen_jax.models.transformer import TransformerConfig
from pallas_kernels.common.dispatch import check_implementation

LAYER_KINDS = ("mixer", "attention", "screening")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionLayers:
    """The attention layers of a pattern; the fields are those of `TransformerConfig`."""

    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    rope_theta: float = 10000.0
    rope_factor: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScreeningLayers:
    """The screening layers of a pattern; the fields are those of `MultiscreenConfig`."""

    num_heads: int
    key_dim: int = 16
    value_dim: int = 64
    window_threshold: float = 256.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearConfig(DecoderConfig):
    """Shape and settings of the linear family, beside those of `DecoderConfig`.

    Attributes:
        num_heads, key_dim, value_dim: H, and K and V of each head.
        feed_forward_dim: F of the SwiGLU after each mixer; 0: there is none; None: 8 D / 3 rounded
            up to a multiple of 256.
        initializer_range: standard deviation of the initial weights, but for those that write to
            the residual stream: these are uniform within 1 / sqrt(fan_in) divided by the root of
            the number of branches in the model. None is 1 / sqrt(3 D), PyTorch's own for a linear
            layer and Mamba-2's; with fla's 0.02 a narrow Mamba-2 does not learn recall.
        pattern: kinds of layer, repeated along the depth: "mixer", "attention", "screening".
        attention, screening: shapes of the layers of these kinds.
        implementation: of the recurrent op, see `pallas_kernels`.
    """

    num_heads: int
    key_dim: int
    value_dim: int
    feed_forward_dim: int | None = None
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    final_norm_gain: bool = True
    initializer_range: float | None = None
    pattern: tuple[str, ...] = ("mixer",)
    attention: AttentionLayers | None = None
    screening: ScreeningLayers | None = None
    implementation: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.positive_integers(self, "num_heads", "key_dim", "value_dim")
        if self.feed_forward_dim is None:
            rounded_up = -(-(8 * self.model_dim // 3) // 256) * 256
            object.__setattr__(self, "feed_forward_dim", rounded_up)
        if self.initializer_range is None:
            object.__setattr__(self, "initializer_range", (3 * self.model_dim) ** -0.5)
        fields.positive_integers(self, "feed_forward_dim", at_least=0)
        fields.positive_numbers(self, "initializer_range")
        check_implementation(self.implementation)
        for field in ("implementation", "pattern"):  # configs are hashable
            if isinstance(getattr(self, field), list):
                object.__setattr__(self, field, tuple(getattr(self, field)))
        self._check_pattern()

    def _check_pattern(self) -> None:
        if not isinstance(self.pattern, tuple) or not self.pattern:
            raise ValueError(f"pattern must be a tuple of kinds of layer, got {self.pattern!r}")
        for kind in self.pattern:
            fields.one_of("pattern", kind, LAYER_KINDS)
        if self.num_layers % len(self.pattern):
            raise ValueError(
                f"num_layers must be a multiple of the pattern's {len(self.pattern)} layers, "
                f"got {self.num_layers}"
            )
        for kind in LAYER_KINDS[1:]:
            if (kind in self.pattern) != (getattr(self, kind) is not None):
                raise ValueError(
                    f"{kind} must be given if the pattern has such layers and only then, got "
                    f"pattern={self.pattern!r}, {kind}={getattr(self, kind)!r}"
                )
        for kind in set(self.pattern) - {"mixer"}:
            self._borrowed(kind)  # checks its fields

    @property
    def mixer_class(self) -> type[Mixer]:
        """The architecture's own mixer."""
        raise NotImplementedError(f"{type(self).__name__} does not define mixer_class")

    @property
    def init_scale(self) -> float:
        assert self.initializer_range is not None
        return self.initializer_range

    def output_init(self, rank: int) -> Any:
        """U(-b, b), b = 1 / sqrt(fan_in) / sqrt(branches): PyTorch's own for a linear layer."""
        branches = self.num_layers * (2 if self.feed_forward_dim else 1)
        return nn.initializers.variance_scaling(
            1 / (3 * branches), "fan_in", "uniform", in_axis=tuple(range(rank - 1)), out_axis=-1
        )

    def layer_plans(self) -> tuple[LayerPlan, ...]:
        feed_forward = Branch("feed_forward", SwiGLU, self) if self.feed_forward_dim else None
        own = Branch("mixer", self.mixer_class, self)
        mixers = [own if kind == "mixer" else self._borrowed(kind) for kind in self.pattern]
        return tuple(LayerPlan(mixer, feed_forward) for mixer in mixers)

    def _borrowed(self, kind: str) -> Branch:
        """An attention or screening layer, with a config of the model it is taken from."""
        shared = {
            name: getattr(self, name)
            for name in ("vocab_size", "model_dim", "num_layers", "trained_length", "dtype",
                         "param_dtype", "precision")
        }  # fmt: skip
        layers = getattr(self, kind)
        own = {field.name: getattr(layers, field.name) for field in dataclasses.fields(layers)}
        if kind == "attention":
            return Branch("attention", Attention, TransformerConfig(**shared, **own))
        return Branch("tiles", ScreeningTiles, MultiscreenConfig(**shared, **own))


def preset(config_class: Any, kind: str, presets: Any, name: str, overrides: Any) -> Any:
    """A config of one of an architecture's named shapes, with fields replaced."""
    if str(name).lower() not in presets:
        raise fields.unknown_name(f"{kind} preset", name, presets)
    return config_class(**{**presets[name.lower()], **overrides})
