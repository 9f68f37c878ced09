"""The Transformer of `abcdigits_small`: the same rows and stages.

python -m experiments.train abcdigits_small_transformer
"""

from experiments.configs import abcdigits_small
from multiscreen_jax.models.registry import config_for
from multiscreen_jax.train import ExperimentConfig, override, transformer_recipe


def config() -> ExperimentConfig:
    base = abcdigits_small.config()
    return ExperimentConfig(
        model=config_for(
            "transformer-8m",
            vocab_size=38,
            num_layers=3,
            num_heads=4,
            model_dim=40,
            feed_forward_dim=120,
        ),
        data=base.data,
        optim=transformer_recipe(2.0**-8, warmup_steps=50),
        train=override(base, train={"output_dir": "runs/abcdigits_small_transformer"}).train,
    )
