"""The config `mqar_small` with Log-Linear Gated DeltaNet: the same examples and steps.

    python -m experiments.train mqar_small_log_linear_gdn
    python -m experiments.evaluate runs/mqar_small_log_linear_gdn --task mqar

Not run yet.
"""

from experiments.configs import _mqar, mqar_small
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _mqar.with_linear(
        mqar_small.config(),
        "mqar_small_log_linear_gdn",
        "log-linear-gdn-tiny",
        model_dim=64,
        learning_rate=3e-3,
    )
