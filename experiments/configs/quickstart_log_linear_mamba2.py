"""Log-Linear Mamba-2 of the quickstart's size on the same text and batches.

    python -m experiments.train quickstart_log_linear_mamba2 --train.output-dir runs/ll_mamba2

Expected: 1.582 bits per byte on the first validation batches after 600 steps.
"""

from experiments.configs import _quickstart
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _quickstart.experiment(
        "log_linear_mamba2",
        "log-linear-mamba2-tiny",
        learning_rate=4e-3,
        model_dim=80,
        num_heads=4,
        key_dim=32,
        value_dim=32,
        feed_forward_dim=136,
    )
