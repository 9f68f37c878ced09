"""The config `mqar_small` with Mamba-2: the same examples and steps.

    python -m experiments.train mqar_small_mamba2
    python -m experiments.evaluate runs/mqar_small_mamba2 --task mqar

Expected: 99.7 % of 4 pairs in 16 tokens and 98.5 % in 32, a length it never saw.
"""

from experiments.configs import _mqar, mqar_small
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _mqar.with_linear(
        mqar_small.config(), "mqar_small_mamba2", "mamba2-tiny", model_dim=64, learning_rate=1e-2
    )
