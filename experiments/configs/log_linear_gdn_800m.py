"""Log-Linear Gated DeltaNet of 796M; "Log-Linear Attention".

    python -m experiments.train log_linear_gdn_800m --data.source tokens.bin \\
        --data.tokenizer tokenizer.json

Token files are made by `python -m experiments.prepare_data`; give --mesh.* for your devices.
"""

from experiments.configs import _log_linear_paper
from multiscreen_jax.train import ExperimentConfig


def config() -> ExperimentConfig:
    return _log_linear_paper.experiment("log-linear-gdn-800m")
