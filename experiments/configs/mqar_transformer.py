"""The config `mqar` with a Transformer: the same examples and steps.

    python -m experiments.train mqar_transformer
    python -m experiments.evaluate runs/mqar_transformer --task mqar

Not run yet.
"""

from experiments.configs import _mqar, mqar
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _mqar.with_transformer(
        mqar.config(), "mqar_transformer", model_dim=128, learning_rate=1e-3, weight_decay=0.1
    )
