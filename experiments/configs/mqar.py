"""Associative recall, zoology's mixed suite: lengths 64 to 256, 4 to 64 pairs; Multiscreen.

    python -m experiments.train mqar --optim.learning-rate 0.01
    python -m experiments.evaluate runs/mqar --task mqar

Vocabulary 8192, 180,000 examples, 32 epochs in batches of 256; tested up to 1024 tokens with 256
pairs. The published comparisons sweep widths of 64 to 256 (--model.model-dim) and rates from
10^-3 to 10^-1.5, and stop at 99 % accuracy.

Not run yet: the rate is that of `mqar_small`.
"""

from experiments.configs import _mqar
from multiscreen_jax.data import MqarConfig
from multiscreen_jax.data.mqar import MIXED_TRAIN, MIXED_VALID
from multiscreen_jax.models import MultiscreenConfig
from multiscreen_jax.train import ExperimentConfig

BATCH_SIZE = 256


def config() -> ExperimentConfig:
    return _mqar.experiment(
        "mqar",
        MultiscreenConfig(
            vocab_size=8192, model_dim=128, num_layers=2, num_heads=4, embedding_init_scale=1.0
        ),
        MqarConfig(vocab_size=8192, train=MIXED_TRAIN, valid=MIXED_VALID),
        steps=32 * _mqar.batches(MIXED_TRAIN, BATCH_SIZE),
        batch_size=BATCH_SIZE,
        learning_rate=2.0**-9,
    )
