"""Transformer 8M: the paper's LLaMA-style baseline, 2^38 tokens of SlimPajama.

    python -m experiments.train transformer_8m --data.source "slimpajama.bin"

Token files are made by `python -m experiments.prepare_data`; give --mesh.* for your devices.
"""

from experiments.configs import _paper
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _paper.transformer("8m", learning_rate=1e-3)
