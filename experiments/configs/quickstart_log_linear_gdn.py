"""Log-Linear Gated DeltaNet of the quickstart's size on the same text and batches.

    python -m experiments.train quickstart_log_linear_gdn --train.output-dir runs/log_linear_gdn

Expected: 1.612 bits per byte on the first validation batches after 600 steps.
"""

from experiments.configs import _quickstart
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _quickstart.experiment(
        "log_linear_gdn",
        "log-linear-gdn-tiny",
        learning_rate=4e-3,
        model_dim=80,
        num_heads=2,
        key_dim=24,
        value_dim=48,
        feed_forward_dim=168,
    )
