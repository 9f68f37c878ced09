"""What the architectures of the linear family share: their config, and patterns with other layers.

    pattern = ("mixer", "mixer", "mixer", "attention")      every fourth layer attends

"mixer" is the architecture's own. Attention and screening layers are those of `Transformer` and
`Multiscreen`, initialised as there, but inside this skeleton: with a norm before them, and followed
by this architecture's feed-forward.
"""

import dataclasses

from multiscreen_jax import fields
from multiscreen_jax.layers.branch import Spec
from multiscreen_jax.layers.feed_forward import SwiGLUSpec
from multiscreen_jax.layers.initializers import NormalAndUniform
from multiscreen_jax.mixers.attention import AttentionSpec
from multiscreen_jax.mixers.screening import ScreeningSpec
from multiscreen_jax.models.decoder import DecoderConfig
from multiscreen_jax.models.transformer import transformer_init
from multiscreen_jax.models.trunk import Layer, Stage, stages_of

# Of the models that checks build; no length is that of another axis.
SMALL = {"vocab_size": 61, "model_dim": 16, "num_layers": 2, "key_dim": 6, "value_dim": 5}

LAYER_KINDS = ("mixer", "attention", "screening")


AttentionLayers, ScreeningLayers = AttentionSpec, ScreeningSpec


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
        if self.feed_forward_dim is None:
            rounded_up = -(-(8 * self.model_dim // 3) // 256) * 256
            object.__setattr__(self, "feed_forward_dim", rounded_up)
        if self.initializer_range is None:
            object.__setattr__(self, "initializer_range", (3 * self.model_dim) ** -0.5)
        fields.positive_integers(self, "feed_forward_dim", at_least=0)
        fields.positive_numbers(self, "initializer_range")
        if isinstance(self.pattern, list):  # configs are hashable
            object.__setattr__(self, "pattern", tuple(self.pattern))
        fields.take(self, self.mixer())
        self._check_pattern()
        self.stages()  # there is room for the pattern

    def _check_pattern(self) -> None:
        if not isinstance(self.pattern, tuple) or not self.pattern:
            raise ValueError(f"pattern must be a tuple of kinds of layer, got {self.pattern!r}")
        for kind in self.pattern:
            fields.one_of("pattern", kind, LAYER_KINDS)
        for kind in LAYER_KINDS[1:]:
            if (kind in self.pattern) != (getattr(self, kind) is not None):
                raise ValueError(
                    f"{kind} must be given if the pattern has such layers and only then, got "
                    f"pattern={self.pattern!r}, {kind}={getattr(self, kind)!r}"
                )
        if self.attention is not None:
            self.attention.fitted(self.model_dim)  # checks that it fits

    def mixer(self) -> Spec:
        """The architecture's own mixer."""
        raise NotImplementedError(f"{type(self).__name__} does not define mixer")

    def init(self) -> NormalAndUniform:
        assert self.initializer_range is not None
        branches = self.num_layers * (2 if self.feed_forward_dim else 1)
        return NormalAndUniform(self.initializer_range, branches)

    def stages(self) -> tuple[Stage, ...]:
        width = self.feed_forward_dim
        feed_forward = SwiGLUSpec(feed_forward_dim=width) if width else None
        kinds = {
            "mixer": Layer(self.mixer(), feed_forward),
            # As in the Transformer, its initial values too.
            "attention": Layer(
                self.attention, feed_forward, mixer_init=transformer_init(self.num_layers)
            ),
            "screening": Layer(self.screening, feed_forward),
        }
        return stages_of(self.num_layers, tuple(kinds[kind] for kind in self.pattern))
