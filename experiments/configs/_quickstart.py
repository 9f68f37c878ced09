"""The quickstart with another model: the same text, batches and steps, about 467,000 parameters."""

from typing import Any

from experiments.configs import quickstart
from multiscreen_jax.models.registry import config_for
from multiscreen_jax.train import ExperimentConfig, override, transformer_recipe


def experiment(name: str, preset: str, learning_rate: float, **shape: Any) -> ExperimentConfig:
    """`preset` with six layers, tied embeddings and this shape; decay 0.1, clipping at 1."""
    base = quickstart.config()
    output_dir = f"runs/quickstart_{name}"
    return ExperimentConfig(
        model=config_for(preset, num_layers=6, tie_embeddings=True, **shape),
        data=base.data,
        mesh=base.mesh,
        optim=transformer_recipe(
            learning_rate,
            warmup_steps=base.optim.warmup_steps,
            schedule=base.optim.schedule,
            decay_steps=base.optim.decay_steps,
        ),
        train=override(base, train={"output_dir": output_dir, "health_every": 0}).train,
    )
