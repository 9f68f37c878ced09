"""What the objective measures on the validation split."""

import math
from functools import cached_property
from typing import Any

import flax.linen as nn
import numpy as np

from multiscreen_jax import sharding
from multiscreen_jax.data import Pipeline
from multiscreen_jax.data.pipeline import entropy_bits, scored_targets
from multiscreen_jax.evaluation.perplexity import read_batches
from multiscreen_jax.objectives import Objective


class Validation:
    """The first batches of the validation split, always the same ones."""

    def __init__(
        self, objective: Objective, model: nn.Module, pipeline: Pipeline, batches: int, where: Any
    ) -> None:
        available = pipeline.num_batches
        count = batches if available is None else min(batches, available)
        if count == 0:
            raise ValueError(
                "train.evaluate-every is set and the validation split holds no batch; give "
                "data.valid-source or a larger data.valid-fraction, or 0 to train without"
            )
        self._objective, self._model = objective, model
        self._pipeline, self._count, self._where = pipeline, count, where

    @cached_property
    def unigram_bits_per_byte(self) -> float:
        """What a model that only knows how often each token occurs in these batches would reach
        on them; NaN where tokens are no text.

        Not of the whole split, which can be terabytes, and read only by a process that prints it.
        """
        every_row = self._pipeline.take(range(self._pipeline.config.batch_size))
        counts, text_bytes = np.zeros(self._pipeline.vocab_size, np.int64), 0
        for batch in read_batches(every_row, self._count):
            targets = np.asarray(batch.get("targets", batch["tokens"][:, 1:]))
            scored = targets[scored_targets(batch)]
            counts += np.bincount(scored, minlength=len(counts))
            text_bytes += every_row.target_bytes(batch)
        return entropy_bits(counts) / text_bytes if text_bytes else math.nan

    def __call__(self, params: Any) -> dict[str, float]:
        """validation_loss and what else the objective measures: of next tokens (nats)
        validation_accuracy, and of text validation_bits_per_byte, with the share of its bytes that
        the tokenizer lost, if any, as validation_lost_share."""

        def place(batch: Any) -> Any:
            return sharding.place_batch(batch, self._where)

        found = self._objective.evaluate(self._model, params, self._pipeline, self._count, place)
        values = {f"validation_{name}": value for name, value in found.items()}
        if "bits_per_byte" in found and self._pipeline.lost_share:
            values["validation_lost_share"] = self._pipeline.lost_share
        return values

    def summary(self, record: dict[str, float]) -> str:
        """What `record`, a line of metrics with validation, says in one sentence."""
        if "validation_bits_per_byte" in record:
            share = record.get("validation_lost_share")
            lost = f"; the tokenizer lost {share:.2%} of the bytes" if share else ""
            return (
                f"validation {record['validation_bits_per_byte']:.3f} bits per byte on "
                f"{self._count} batches, where token frequencies alone give "
                f"{self.unigram_bits_per_byte:.3f}{lost}"
            )
        accuracy = record.get("validation_accuracy")
        right = "" if accuracy is None else f", accuracy {accuracy:.2%}"
        return f"validation loss {record['validation_loss']:.4f}{right}"
