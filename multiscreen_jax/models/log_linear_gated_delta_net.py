"""Log-Linear Gated DeltaNet, of "Log-Linear Attention" (arXiv:2506.04761).

    x = x + mixer(norm(x))            mixers/log_linear_gated_delta_net.py
    x = x + swiglu(norm(x))

Its parent with one change: the past is kept in states by age, each with a weight of its own.
"""

import dataclasses

from multiscreen_jax.mixers.log_linear import Levels
from multiscreen_jax.mixers.log_linear_gated_delta_net import LogLinearGatedDeltaNetSpec
from multiscreen_jax.models import gated_delta_net
from multiscreen_jax.models.architecture import Architecture, Contract
from multiscreen_jax.models.decoder import Decoder
from multiscreen_jax.models.fla_names import LOG_LINEAR_GATED_DELTA, fla
from multiscreen_jax.models.gated_delta_net import GatedDeltaNetConfig
from multiscreen_jax.models.linear import SMALL

__all__ = ["LogLinearGatedDeltaNet", "LogLinearGatedDeltaNetConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogLinearGatedDeltaNetConfig(Levels, GatedDeltaNetConfig):
    """Shape and settings of a Log-Linear Gated DeltaNet: `GatedDeltaNetConfig` and `Levels`."""

    def mixer(self) -> LogLinearGatedDeltaNetSpec:
        return LogLinearGatedDeltaNetSpec(**self.own_fields(LogLinearGatedDeltaNetSpec))


class LogLinearGatedDeltaNet(Decoder):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: LogLinearGatedDeltaNetConfig


ARCHITECTURE = Architecture(
    name="log-linear-gdn",
    config=LogLinearGatedDeltaNetConfig,
    model=LogLinearGatedDeltaNet,
    presets={
        "tiny": {**gated_delta_net.ARCHITECTURE.presets["tiny"], "num_levels": 12},
        "800m": gated_delta_net.ARCHITECTURE.presets["800m"],
    },
    paper="Log-Linear Attention, arXiv:2506.04761, section 3.4",
    sources=(
        fla(
            "log_linear_gdn/hattention",
            *LOG_LINEAR_GATED_DELTA,
            notes=(
                "HGatedDeltaNetForCausalLM of HanGuo97/log-linear-attention, 15 levels. Names and "
                "shapes are those of gated_deltanet/fla with two more a layer."
            ),
        ),
    ),
    contract=Contract(
        fields={
            **SMALL,
            "num_heads": 2,
            "feed_forward_dim": 24,
            "num_levels": 9,
            "max_documents": 4,
        },
    ),
)
