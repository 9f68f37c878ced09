"""Training: `train(config)` runs, saves, resumes; `load_params` gives the result back."""

from multiscreen_jax.train.config import (
    ExperimentConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
    override,
    transformer_recipe,
)
from multiscreen_jax.train.errors import NonFiniteLoss, one_line_errors
from multiscreen_jax.train.loop import Result, train
from multiscreen_jax.train.reading import load_params

__all__ = [
    "ExperimentConfig",
    "MeshConfig",
    "NonFiniteLoss",
    "OptimConfig",
    "Result",
    "TrainConfig",
    "load_params",
    "one_line_errors",
    "override",
    "train",
    "transformer_recipe",
]
