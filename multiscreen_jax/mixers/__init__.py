"""Token mixers, one per file: x -> y, causal, with a cache that goes in and comes out.

One of your own derives from `Mixer`, or from `RecurrentMixer` where its memory is a state; a
`models.LinearConfig` names it, and `models.Decoder(config)` is the language model around it.
"""

from multiscreen_jax.mixers.attention import Attention
from multiscreen_jax.mixers.delta_net import DeltaNetMixer
from multiscreen_jax.mixers.gated_delta_net import GatedDeltaNetMixer
from multiscreen_jax.mixers.log_linear_gated_delta_net import LogLinearGatedDeltaNetMixer
from multiscreen_jax.mixers.log_linear_mamba2 import LogLinearMamba2Mixer
from multiscreen_jax.mixers.mamba2 import Mamba2Mixer
from multiscreen_jax.mixers.mixer import Context, Mixer
from multiscreen_jax.mixers.recurrent import RecurrentMixer, state_zeros
from multiscreen_jax.mixers.retention import Retention
from multiscreen_jax.mixers.screening import ScreeningTiles

__all__ = [
    "Attention",
    "Context",
    "DeltaNetMixer",
    "GatedDeltaNetMixer",
    "LogLinearGatedDeltaNetMixer",
    "LogLinearMamba2Mixer",
    "Mamba2Mixer",
    "Mixer",
    "RecurrentMixer",
    "Retention",
    "ScreeningTiles",
    "state_zeros",
]
