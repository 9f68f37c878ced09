"""Retrieval that a laptop learns in minutes: ABCDigits, 2 to 6 letters in rows of 144 characters.

    python -m experiments.train abcdigits_small

The first of three stages. The others start from it with longer rows, more letters and the
benchmark's halving weights: `experiments/paper/abcdigits.py` has their commands and results.
"""

from multiscreen_jax.data import AbcDigitsConfig, DataConfig
from multiscreen_jax.models import MultiscreenConfig
from multiscreen_jax.train import ExperimentConfig, OptimConfig, TrainConfig


def config() -> ExperimentConfig:
    return ExperimentConfig(
        model=MultiscreenConfig(
            vocab_size=38,
            model_dim=40,
            num_layers=3,
            num_heads=4,
            value_dim=32,
            # With the paper's rows of norm 0.1 a small batch learns later, some seeds much later:
            # see experiments/paper/embedding_rows.py.
            embedding_init_scale=1.0,
        ),
        data=DataConfig(
            source="abcdigits",
            tokenizer="characters",
            sequence_length=144,
            batch_size=16,
            abcdigits=AbcDigitsConfig(max_letters=6, halving_share=0.0),
        ),
        optim=OptimConfig(learning_rate=2.0**-8, warmup_steps=50, b2=0.99),
        train=TrainConfig(
            steps=900,
            output_dir="runs/abcdigits_small",
            checkpoint_every=300,
            evaluate_every=300,
        ),
    )
