"""The config `mqar_small` with Log-Linear Gated DeltaNet: the same examples and steps.

    python -m experiments.train mqar_small_log_linear_gdn
    python -m experiments.evaluate runs/mqar_small_log_linear_gdn --task mqar

Expected: 100.0 % of 4 pairs in 16 tokens and 90.8 % in 32, a length it never saw.
"""

from experiments.configs import _mqar, mqar_small
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _mqar.with_linear(
        mqar_small.config(),
        "mqar_small_log_linear_gdn",
        "log-linear-gdn-tiny",
        model_dim=64,
        learning_rate=1e-3,
    )
