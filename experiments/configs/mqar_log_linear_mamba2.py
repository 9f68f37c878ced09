"""The config `mqar` with Log-Linear Mamba-2: the same examples and steps.

    python -m experiments.train mqar_log_linear_mamba2
    python -m experiments.evaluate runs/mqar_log_linear_mamba2 --task mqar

Not run yet.
"""

from experiments.configs import _mqar, mqar
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _mqar.with_linear(
        mqar.config(),
        "mqar_log_linear_mamba2",
        "log-linear-mamba2-tiny",
        model_dim=128,
        learning_rate=3e-3,
    )
