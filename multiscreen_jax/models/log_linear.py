"""Log-Linear Mamba-2 and Log-Linear Gated DeltaNet, of "Log-Linear Attention" (arXiv:2506.04761).

    x = x + mixer(norm(x))            mixers/log_linear_mamba2.py, log_linear_gated_delta_net.py
    x = x + swiglu(norm(x))

Their parents with one change: the past is kept in states by age, each with a weight of its own.
"""

import dataclasses
from typing import Any

from multiscreen_jax.mixers.log_linear_gated_delta_net import LogLinearGatedDeltaNetMixer
from multiscreen_jax.mixers.log_linear_mamba2 import LogLinearMamba2Mixer
from multiscreen_jax.models import fields, gated_delta_net, mamba2
from multiscreen_jax.models.decoder import Decoder
from multiscreen_jax.models.gated_delta_net import GatedDeltaNetConfig
from multiscreen_jax.models.linear import preset
from multiscreen_jax.models.mamba2 import Mamba2Config
from pallas_kernels.log_linear.levels import BEYOND_LEVELS

MAMBA2_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {**mamba2.PRESETS["mlp-tiny"], "num_levels": 12},
    "800m": mamba2.PRESETS["mlp-800m"],
}
GATED_DELTA_NET_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {**gated_delta_net.PRESETS["tiny"], "num_levels": 12},
    "800m": gated_delta_net.PRESETS["800m"],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogLinearMamba2Config(Mamba2Config):
    """Shape and settings of a Log-Linear Mamba-2, beside those of `Mamba2Config`.

    Attributes:
        feed_forward_dim: None, as in the paper, is 8 D / 3 rounded up to a multiple of 256.
        num_levels: L; documents of 2^(L-1) tokens fit.
        beyond_levels: what longer ones do: "error" (NaN where the length is known only at run
            time), "clamp" or "extend", see `pallas_kernels.log_linear_ssd`.
        max_documents: a packed row may hold; one that holds more is NaN. Each costs up to a chunk.
    """

    feed_forward_dim: int | None = None
    num_levels: int = 15
    beyond_levels: str = "error"
    max_documents: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_levels(self)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "LogLinearMamba2Config":
        """A named shape: "tiny", "800m"."""
        return preset(cls, "Log-Linear Mamba-2", MAMBA2_PRESETS, name, overrides)

    @property
    def mixer_class(self) -> type[LogLinearMamba2Mixer]:
        return LogLinearMamba2Mixer


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogLinearGatedDeltaNetConfig(GatedDeltaNetConfig):
    """Shape and settings of a Log-Linear Gated DeltaNet, beside those of `GatedDeltaNetConfig`.

    Attributes:
        num_levels, beyond_levels, max_documents: as in `LogLinearMamba2Config`.
    """

    num_levels: int = 15
    beyond_levels: str = "error"
    max_documents: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_levels(self)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "LogLinearGatedDeltaNetConfig":
        """A named shape: "tiny", "800m"."""
        return preset(cls, "Log-Linear Gated DeltaNet", GATED_DELTA_NET_PRESETS, name, overrides)

    @property
    def mixer_class(self) -> type[LogLinearGatedDeltaNetMixer]:
        return LogLinearGatedDeltaNetMixer


def _check_levels(config: Any) -> None:
    fields.positive_integers(config, "num_levels", "max_documents")
    fields.one_of("beyond_levels", config.beyond_levels, BEYOND_LEVELS)


class _LogLinearDecoder(Decoder):
    @property
    def longest_document(self) -> int | None:
        fits = 2 ** (self.config.num_levels - 1)
        return fits if self.config.beyond_levels == "error" else None

    def for_one_document(self) -> Decoder:
        # The ops pay for the room that more could need.
        return self.clone(config=dataclasses.replace(self.config, max_documents=1))


class LogLinearMamba2(_LogLinearDecoder):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: LogLinearMamba2Config


class LogLinearGatedDeltaNet(_LogLinearDecoder):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: LogLinearGatedDeltaNetConfig
