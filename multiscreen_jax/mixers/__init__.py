"""Token mixers, one per file: x -> y, causal, with a cache that goes in and comes out.

Each file has a spec, a frozen dataclass with the mixer's own fields, and its module. One of your
own derives from `Spec`, and from `Mixer`, or `RecurrentMixer` where its memory is a state, or
`TokenMixer` where it keeps every token; a layer of any model can be made of it.
"""

from multiscreen_jax.layers.branch import Common, Spec
from multiscreen_jax.mixers.attention import Attention, AttentionSpec
from multiscreen_jax.mixers.delta_net import DeltaNetMixer, DeltaNetSpec
from multiscreen_jax.mixers.gated_delta_net import GatedDeltaNetMixer, GatedDeltaNetSpec
from multiscreen_jax.mixers.log_linear_gated_delta_net import (
    LogLinearGatedDeltaNetMixer,
    LogLinearGatedDeltaNetSpec,
)
from multiscreen_jax.mixers.log_linear_mamba2 import LogLinearMamba2Mixer, LogLinearMamba2Spec
from multiscreen_jax.mixers.mamba2 import Mamba2Mixer, Mamba2Spec
from multiscreen_jax.mixers.mixer import Context, Mixed, Mixer
from multiscreen_jax.mixers.recurrent import RecurrentMixer, state_zeros
from multiscreen_jax.mixers.retention import Retention, RetentionSpec
from multiscreen_jax.mixers.screening import ScreeningSpec, ScreeningTiles
from multiscreen_jax.mixers.tokens import TokenMixer

__all__ = [
    "Attention",
    "AttentionSpec",
    "Common",
    "Context",
    "DeltaNetMixer",
    "DeltaNetSpec",
    "GatedDeltaNetMixer",
    "GatedDeltaNetSpec",
    "LogLinearGatedDeltaNetMixer",
    "LogLinearGatedDeltaNetSpec",
    "LogLinearMamba2Mixer",
    "LogLinearMamba2Spec",
    "Mamba2Mixer",
    "Mamba2Spec",
    "Mixed",
    "Mixer",
    "RecurrentMixer",
    "Retention",
    "RetentionSpec",
    "ScreeningSpec",
    "ScreeningTiles",
    "Spec",
    "TokenMixer",
    "state_zeros",
]
