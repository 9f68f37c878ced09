"""The Transformer of `text_small`: the same text, batches and steps.

python -m experiments.train text_small_transformer
"""

from experiments.configs import text_small
from multiscreen_jax.models.registry import config_for
from multiscreen_jax.train import ExperimentConfig, override, transformer_recipe


def config() -> ExperimentConfig:
    base = text_small.config()
    return ExperimentConfig(
        model=config_for("transformer-8m", vocab_size=256, num_layers=3, num_heads=4, model_dim=56),
        data=base.data,
        optim=transformer_recipe(2.0**-8, warmup_steps=50),
        mesh=base.mesh,
        train=override(base, train={"output_dir": "runs/text_small_transformer"}).train,
    )
