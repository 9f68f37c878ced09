"""Associative recall that a laptop learns in minutes: vocabulary 256, 4 pairs in 16 tokens.

    python -m experiments.train mqar_small
    python -m experiments.evaluate runs/mqar_small --task mqar

Expected: 100.0 % of 4 pairs in 16 tokens and 96.7 % in 32, a length it never saw. At twice the rate
99.6 % and 92.4 %.
"""

from experiments.configs import _mqar
from multiscreen_jax.data import MqarConfig
from multiscreen_jax.models import MultiscreenConfig
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _mqar.experiment(
        "mqar_small",
        MultiscreenConfig(
            vocab_size=256,
            model_dim=64,
            num_layers=2,
            num_heads=4,
            value_dim=32,
            embedding_init_scale=1.0,
        ),
        MqarConfig(
            vocab_size=256,
            train=((16, 4, 400_000),),
            valid=((16, 2, 512), (16, 4, 512), (32, 4, 512)),
        ),
        steps=3000,
        batch_size=128,
        # What looks like a plateau ends suddenly, at a step nobody knows: the rate stays.
        schedule="constant",
        learning_rate=2.0**-9,
    )
