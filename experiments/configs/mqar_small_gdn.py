"""The config `mqar_small` with Gated DeltaNet: the same examples and steps.

    python -m experiments.train mqar_small_gdn
    python -m experiments.evaluate runs/mqar_small_gdn --task mqar

Expected: 100.0 % of 4 pairs in 16 tokens and 97.1 % in 32, a length it never saw.
"""

from experiments.configs import _mqar, mqar_small
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _mqar.with_linear(
        mqar_small.config(), "mqar_small_gdn", "gdn-tiny", model_dim=64, learning_rate=1e-3
    )
