"""Architectures, one per file, and the registry that names their presets."""

from multiscreen_jax.models.decoder import Decoder
from multiscreen_jax.models.delta_net import DeltaNet, DeltaNetConfig
from multiscreen_jax.models.gated_delta_net import GatedDeltaNet, GatedDeltaNetConfig
from multiscreen_jax.models.linear import AttentionLayers, LinearConfig, ScreeningLayers
from multiscreen_jax.models.log_linear import (
    LogLinearGatedDeltaNet,
    LogLinearGatedDeltaNetConfig,
    LogLinearMamba2,
    LogLinearMamba2Config,
)
from multiscreen_jax.models.mamba2 import Mamba2, Mamba2Config
from multiscreen_jax.models.multiscreen import Multiscreen, MultiscreenConfig
from multiscreen_jax.models.output import ModelOutput
from multiscreen_jax.models.registry import build, config_for, create, preset_names
from multiscreen_jax.models.retnet import RetNet, RetNetConfig
from multiscreen_jax.models.transformer import Transformer, TransformerConfig

__all__ = [
    "AttentionLayers",
    "Decoder",
    "DeltaNet",
    "DeltaNetConfig",
    "GatedDeltaNet",
    "GatedDeltaNetConfig",
    "LinearConfig",
    "LogLinearGatedDeltaNet",
    "LogLinearGatedDeltaNetConfig",
    "LogLinearMamba2",
    "LogLinearMamba2Config",
    "Mamba2",
    "Mamba2Config",
    "ModelOutput",
    "Multiscreen",
    "MultiscreenConfig",
    "RetNet",
    "RetNetConfig",
    "ScreeningLayers",
    "Transformer",
    "TransformerConfig",
    "build",
    "config_for",
    "create",
    "preset_names",
]
