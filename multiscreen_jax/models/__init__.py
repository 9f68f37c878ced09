"""Architectures, one per file, and the registry that names their presets."""

from multiscreen_jax.models.multiscreen import Multiscreen, MultiscreenConfig
from multiscreen_jax.models.output import ModelOutput
from multiscreen_jax.models.registry import build, config_for, create, preset_names
from multiscreen_jax.models.transformer import Transformer, TransformerConfig

__all__ = [
    "ModelOutput",
    "Multiscreen",
    "MultiscreenConfig",
    "Transformer",
    "TransformerConfig",
    "build",
    "config_for",
    "create",
    "preset_names",
]
