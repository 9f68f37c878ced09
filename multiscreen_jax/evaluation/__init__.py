"""Measuring trained models: loss on a split, loss by position, recall, retrieval.

    pipeline = mj.data.open_pipeline(config, split="valid")
    mj.evaluation.evaluate(model, params, pipeline)["bits_per_byte"]

Figures of the results are in `evaluation.figures`, which a training run does not load, and the way
to lm-evaluation-harness in `evaluation.lm_eval`, which needs its package.
"""

import importlib
from typing import Any

from multiscreen_jax.evaluation.needle import needle_grid
from multiscreen_jax.evaluation.perplexity import evaluate, loss_by_position
from multiscreen_jax.evaluation.recall import mqar_accuracy
from multiscreen_jax.evaluation.retrieval import retrieval_grid, write_csv

__all__ = [
    "evaluate",
    "lm_eval",
    "loss_by_position",
    "mqar_accuracy",
    "needle_grid",
    "retrieval_grid",
    "write_csv",
]


def __getattr__(name: str) -> Any:
    if name == "lm_eval":  # on first use: others do without its packages
        return importlib.import_module(f"{__name__}.lm_eval")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
