"""Multiscreen 4M: the paper's run, 2^38 tokens of SlimPajama.

    python -m experiments.train multiscreen_4m --data.source "slimpajama.bin"

Token files are made by `python -m experiments.prepare_data`; give --mesh.* for your devices.
"""

from experiments.configs import _paper
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _paper.multiscreen("4m")
