"""What the MQAR experiments share: the data, zoology's recipe, and the change of model.

base = _mqar.experiment("mqar", mqar, steps=20_000, batch_size=256)
config = _mqar.with_model(base, model, "mqar", learning_rate=1e-3)
"""

import dataclasses
from typing import Any

from multiscreen_jax.data import DataConfig, MqarConfig
from multiscreen_jax.models.registry import ModelConfig, config_for
from multiscreen_jax.train import ExperimentConfig, OptimConfig, TrainConfig, override

EVALUATIONS = 8


def batches(parts: tuple[tuple[int, int, int], ...], batch_size: int) -> int:
    """Batches that show every example of the parts once."""
    return sum(-(-examples // batch_size) for _, _, examples in parts)


def experiment(
    name: str,
    model: ModelConfig,
    mqar: MqarConfig,
    steps: int,
    batch_size: int,
    **optim: Any,
) -> ExperimentConfig:
    """AdamW, a warm-up of a twentieth of the steps, a cosine to 0, no clipping, unless told else.

    zoology has no warm-up, decay 0.1, and a rate that falls once an epoch and not every step.
    """
    return ExperimentConfig(
        model=model,
        data=DataConfig(
            source="mqar",
            tokenizer="numbers",
            sequence_length=max(length for length, _, _ in mqar.train),
            batch_size=batch_size,
            mqar=mqar,
        ),
        optim=OptimConfig(
            **{
                "warmup_steps": steps // 20,
                "schedule": "cosine",
                "end_fraction": 0.0,
                "b2": 0.999,
                **optim,
            }
        ),
        train=TrainConfig(
            steps=steps,
            output_dir=f"runs/{name}",
            checkpoint_every=steps // EVALUATIONS,
            evaluate_every=steps // EVALUATIONS,
            evaluate_batches=batches(mqar.valid, batch_size),
        ),
    )


def with_model(
    base: ExperimentConfig, model: ModelConfig, name: str, **optim: Any
) -> ExperimentConfig:
    """The same examples and steps with another model and its optimizer settings."""
    changed = override(base, optim=optim, train={"output_dir": f"runs/{name}"})
    return dataclasses.replace(changed, model=model)


def with_transformer(
    base: ExperimentConfig, name: str, model_dim: int, learning_rate: float, weight_decay: float
) -> ExperimentConfig:
    """A Transformer of two layers and two heads, with clipping at 1.0."""
    shape = {"num_layers": 2, "num_heads": 2, "model_dim": model_dim}
    # Rows are short: with the usual base most rotary pairs would hardly turn.
    model = config_for(
        "transformer-8m", vocab_size=base.model.vocab_size, rope_theta=100.0, **shape
    )
    optim = {"learning_rate": learning_rate, "weight_decay": weight_decay, "clip_norm": 1.0}
    return with_model(base, model, name, **optim)


def with_linear(
    base: ExperimentConfig, name: str, preset: str, model_dim: int, learning_rate: float
) -> ExperimentConfig:
    """Two layers of mixers alone, with the heads of a preset of the linear family."""
    shape = {"num_layers": 2, "model_dim": model_dim, "feed_forward_dim": 0}
    model = config_for(preset, vocab_size=base.model.vocab_size, tie_embeddings=True, **shape)
    optim = {"learning_rate": learning_rate, "weight_decay": 0.01, "clip_norm": 1.0}
    return with_model(base, model, name, **optim)
