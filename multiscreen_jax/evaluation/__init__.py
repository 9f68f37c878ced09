"""Measuring trained models: loss on a split, loss by position, retrieval.

pipeline = mj.data.open_pipeline(config, split="valid")
mj.evaluation.evaluate(model, params, pipeline)["bits_per_byte"]
"""

from multiscreen_jax.evaluation.perplexity import evaluate, loss_by_position

__all__ = ["evaluate", "loss_by_position"]
