"""Architectures, one per file, and the registry that names their presets."""

from multiscreen_jax.models.multiscreen import Multiscreen, MultiscreenConfig
from multiscreen_jax.models.output import ModelOutput

__all__ = ["ModelOutput", "Multiscreen", "MultiscreenConfig"]
