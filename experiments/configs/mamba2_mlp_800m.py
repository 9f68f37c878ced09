"""Mamba-2 of 802M with feed-forward layers, parent of Log-Linear Mamba-2; "Log-Linear Attention".

    python -m experiments.train mamba2_mlp_800m --data.source tokens.bin \\
        --data.tokenizer tokenizer.json

Token files are made by `python -m experiments.prepare_data`; give --mesh.* for your devices.
"""

from experiments.configs import _log_linear_paper
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _log_linear_paper.experiment("mamba2-mlp-800m")
