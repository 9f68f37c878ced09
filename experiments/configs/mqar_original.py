"""Associative recall as in zoology's first figure: one length, one number of pairs; Multiscreen.

    python -m experiments.train mqar_original
    python -m experiments.train mqar_original --data.mqar.train 512 64 100000 \\
        --data.mqar.valid 512 64 3000 --data.sequence-length 512 --data.batch-size 128

Vocabulary 8192, zeros between the queries, 100,000 examples, 64 epochs. The figure has (64, 4) and
(128, 8) in batches of 512, (256, 16) of 256 and (512, 64) of 128, widths 64 to 512 and rates
10^-4 to 10^-2; --train.steps is to be 64 x 100,000 / batch size.

Not run yet: the rate is that of `mqar_small`.
"""

from experiments.configs import _mqar
from multiscreen_jax.data import MqarConfig
from multiscreen_jax.data.mqar import ORIGINAL_TRAIN, ORIGINAL_VALID
from multiscreen_jax.models import MultiscreenConfig
from multiscreen_jax.train import ExperimentConfig

BATCH_SIZE = 512


def config() -> ExperimentConfig:
    train, valid = ORIGINAL_TRAIN[:1], ORIGINAL_VALID[:1]
    return _mqar.experiment(
        "mqar_original",
        MultiscreenConfig(
            vocab_size=8192, model_dim=128, num_layers=2, num_heads=4, embedding_init_scale=1.0
        ),
        MqarConfig(vocab_size=8192, train=train, valid=valid, random_non_queries=False),
        steps=64 * _mqar.batches(train, BATCH_SIZE),
        batch_size=BATCH_SIZE,
        learning_rate=2.0**-9,
    )
