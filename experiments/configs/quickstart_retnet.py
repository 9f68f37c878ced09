"""RetNet of the quickstart's size on the same text and batches.

    python -m experiments.train quickstart_retnet --train.output-dir runs/retnet

Expected: 1.795 bits per byte on the first validation batches after 600 steps.
"""

from experiments.configs import _quickstart
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _quickstart.experiment(
        "retnet",
        "retnet-tiny",
        learning_rate=4e-3,
        model_dim=80,
        num_heads=2,
        key_dim=40,
        value_dim=64,
        feed_forward_dim=128,
    )
