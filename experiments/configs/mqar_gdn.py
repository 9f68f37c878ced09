"""The config `mqar` with Gated DeltaNet: the same examples and steps.

    python -m experiments.train mqar_gdn
    python -m experiments.evaluate runs/mqar_gdn --task mqar

Not run yet.
"""

from experiments.configs import _mqar, mqar
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _mqar.with_linear(
        mqar.config(), "mqar_gdn", "gdn-tiny", model_dim=128, learning_rate=3e-3
    )
