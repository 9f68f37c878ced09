"""The config `mqar_small` with Gated DeltaNet: the same examples and steps.

    python -m experiments.train mqar_small_gdn
    python -m experiments.evaluate runs/mqar_small_gdn --task mqar

Not run yet.
"""

from experiments.configs import _mqar, mqar_small
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _mqar.with_linear(
        mqar_small.config(), "mqar_small_gdn", "gdn-tiny", model_dim=64, learning_rate=3e-3
    )
