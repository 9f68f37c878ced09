"""Speeches in a model of 115 thousand parameters: half a minute, for sweeps.

    python -m experiments.train text_small

The runs of `experiments/paper/learning_rates.py` and `scaling.py`, which have the results.
"""

from experiments.configs import quickstart
from multiscreen_jax.models import MultiscreenConfig
from multiscreen_jax.train import ExperimentConfig, OptimConfig, override


def config() -> ExperimentConfig:
    base = override(
        quickstart.config(),
        data={"sequence_length": 128},
        mesh={"cpu_devices": 1},
        train={
            "steps": 400,
            "output_dir": "runs/text_small",
            "checkpoint_every": 0,
            "keep_best": 0,
            "evaluate_every": 400,
            "evaluate_batches": 32,
            "health_every": 0,
            "sample_prompts": (),
            "tensorboard": False,
        },
    )
    return ExperimentConfig(
        model=MultiscreenConfig(
            vocab_size=256,
            model_dim=64,
            num_layers=3,
            num_heads=4,
            value_dim=32,
            embedding_init_scale=1.0,
        ),
        data=base.data,
        optim=OptimConfig(warmup_steps=50),
        mesh=base.mesh,
        train=base.train,
    )
