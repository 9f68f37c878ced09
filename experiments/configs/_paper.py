"""The runs of "Screening Is Enough" (arXiv:2604.01178): 2^38 tokens, length 2^12, GPT-2 tokens.

    python -m experiments.train multiscreen_28m --data.source "slimpajama.bin"

v3 of the paper has 2^12 warm-up steps (v1: 2^10), and 65,536 steps of 1024 sequences follow from
its budget. Precision, seeds and the mesh are not published; those here are ours.
"""

from typing import Any

from multiscreen_jax.data import DataConfig
from multiscreen_jax.models.registry import config_for
from multiscreen_jax.train import ExperimentConfig, OptimConfig, TrainConfig, transformer_recipe


def multiscreen(size: str) -> ExperimentConfig:
    """Multiscreen of a size: learning rate 2^-4, no decay, no clipping."""
    return experiment(f"multiscreen-{size}", OptimConfig(), health_every=1000)


def transformer(size: str, learning_rate: float) -> ExperimentConfig:
    """The LLaMA-style baseline: weight decay 0.1, clipping at 1.0, its own learning rate."""
    recipe = transformer_recipe(learning_rate, warmup_steps=2**12)
    return experiment(f"transformer-{size}", recipe)


def experiment(name: str, optim: OptimConfig, **train: Any) -> ExperimentConfig:
    """The paper's data and budget with any registered model."""
    return ExperimentConfig(
        model=config_for(name, dtype="bfloat16", remat="full"),
        data=DataConfig(
            source="slimpajama.bin",
            tokenizer="gpt2",
            sequence_length=2**12,
            batch_size=2**10,
        ),
        optim=optim,
        train=TrainConfig(
            steps=2**16,
            output_dir=f"runs/{name}",
            checkpoint_every=1000,
            evaluate_every=1000,
            **train,
        ),
    )
