"""Loss on the validation split, in nats per token and bits per byte of text, and accuracy."""

from typing import Any

import flax.linen as nn

from multiscreen_jax import sharding
from multiscreen_jax.data import Pipeline
from multiscreen_jax.evaluation import evaluate


class Validation:
    """The first batches of the validation split, always the same ones.

    `unigram_bits_per_byte` is what a model that only knows token frequencies would reach; NaN
    where tokens are no text.
    """

    def __init__(self, model: nn.Module, pipeline: Pipeline, batches: int, where: Any) -> None:
        available = pipeline.num_batches
        count = batches if available is None else min(batches, available)
        if count == 0:
            raise ValueError(
                "train.evaluate-every is set and the validation split holds no batch; give "
                "data.valid-source or a larger data.valid-fraction, or 0 to train without"
            )
        self._model, self._pipeline, self._count, self._where = model, pipeline, count, where
        self.unigram_bits_per_byte = pipeline.unigram_bits_per_byte()

    def __call__(self, params: Any) -> dict[str, float]:
        """validation_loss (nats per token), validation_accuracy, and of text
        validation_bits_per_byte."""

        def place(batch: Any) -> Any:
            return sharding.place_batch(batch, self._where)

        found = evaluate(self._model, params, self._pipeline, self._count, place)
        values = {"validation_loss": found["loss"], "validation_accuracy": found["accuracy"]}
        if found["bytes"]:
            values["validation_bits_per_byte"] = found["bits_per_byte"]
        return values

    def summary(self, record: dict[str, float]) -> str:
        """What `record`, a line of metrics with validation, says in one sentence."""
        if "validation_bits_per_byte" in record:
            return (
                f"validation {record['validation_bits_per_byte']:.3f} bits per byte; "
                f"token frequencies alone give {self.unigram_bits_per_byte:.3f}"
            )
        return (
            f"validation loss {record['validation_loss']:.4f}, "
            f"accuracy {record['validation_accuracy']:.2%}"
        )
