"""The config `mqar_small` with a Transformer: the same examples and steps.

python -m experiments.train mqar_small_transformer
python -m experiments.evaluate runs/mqar_small_transformer --task mqar
"""

from experiments.configs import _mqar, mqar_small
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _mqar.with_transformer(
        mqar_small.config(),
        "mqar_small_transformer",
        model_dim=64,
        learning_rate=2e-3,
        weight_decay=0.01,
    )
