"""The runs of "Log-Linear Attention" (arXiv:2506.04761): 50B tokens, length 2^14, batches of 2^19.

    python -m experiments.train log_linear_gdn_800m --data.source tokens.bin \\
        --data.tokenizer tokenizer.json

The paper names data (Long-Data-Collections), tokenizer (32,000 tokens), length, batch and budget.
Its optimizer's settings are not published: those here are ours.
"""

from multiscreen_jax.data import DataConfig
from multiscreen_jax.models.registry import config_for
from multiscreen_jax.train import ExperimentConfig, OptimConfig, TrainConfig

STEPS = 95_368


def experiment(preset: str) -> ExperimentConfig:
    """A preset at the paper's budget: AdamW, decay 0.1, clipping at 1, a cosine to a tenth."""
    return ExperimentConfig(
        model=config_for(preset, dtype="bfloat16", remat="full"),
        data=DataConfig(
            source="long-data-collections.bin",
            tokenizer="tokenizer.json",
            sequence_length=2**14,
            batch_size=32,
        ),
        optim=OptimConfig(
            learning_rate=3e-4,
            warmup_steps=1000,
            schedule="cosine",
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        train=TrainConfig(
            steps=STEPS,
            output_dir=f"runs/{preset}",
            checkpoint_every=1000,
            evaluate_every=1000,
        ),
    )
