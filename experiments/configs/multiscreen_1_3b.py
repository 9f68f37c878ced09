"""Multiscreen 1.3B: the paper's run, 2^38 tokens of SlimPajama.

    python -m experiments.train multiscreen_1_3b --data.source "slimpajama.bin"

Token files are made by `python -m experiments.prepare_data`; give --mesh.* for your devices.
"""

from experiments.configs import _paper
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _paper.multiscreen("1.3b")
