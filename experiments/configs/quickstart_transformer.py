"""The quickstart's other half: a Transformer of the same size on the same text and batches.

    python -m experiments.train quickstart_transformer --train.output-dir runs/transformer

Expected: 1.797 bits per byte on the first validation batches after 600 steps.
"""

from experiments.configs import quickstart
from multiscreen_jax.models.registry import config_for
from multiscreen_jax.train import ExperimentConfig, override, transformer_recipe


def config() -> ExperimentConfig:
    base = quickstart.config()
    model = config_for("transformer-8m", vocab_size=256, num_layers=6, num_heads=4, model_dim=80)
    return ExperimentConfig(
        model=model,
        data=base.data,
        mesh=base.mesh,
        optim=transformer_recipe(
            8e-3,
            warmup_steps=base.optim.warmup_steps,
            schedule=base.optim.schedule,
            decay_steps=base.optim.decay_steps,
        ),
        train=override(
            base, train={"output_dir": "runs/quickstart_transformer", "health_every": 0}
        ).train,
    )
