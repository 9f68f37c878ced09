"""A Transformer of a few thousand parameters on speeches: the config `tiny` with another model.

    python -m experiments.train tiny_transformer --train.output-dir runs/tiny_transformer

Loss falls from 5.5 to about 3.2 nats per byte in 60 steps.
"""

import dataclasses

from experiments.configs import tiny
from multiscreen_jax.models.registry import config_for
from multiscreen_jax.train import ExperimentConfig, override, transformer_recipe


def config() -> ExperimentConfig:
    model = config_for("transformer-8m", vocab_size=256, num_layers=2, num_heads=2, model_dim=16)
    base = override(tiny.config(), train={"output_dir": "runs/tiny_transformer"})
    return dataclasses.replace(base, model=model, optim=transformer_recipe(1e-2, warmup_steps=10))
