"""Loss on the validation split, in nats per token and bits per byte of text."""

from typing import Any

import flax.linen as nn

from multiscreen_jax import sharding
from multiscreen_jax.data import Pipeline
from multiscreen_jax.evaluation import evaluate


class Validation:
    """The first batches of the validation split, always the same ones.

    `unigram_bits_per_byte` is what a model that only knows token frequencies would reach.
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
        """{"validation_loss": nats per token, "validation_bits_per_byte": ...}."""

        def place(batch: Any) -> Any:
            return sharding.place_batch(batch, self._where)

        found = evaluate(self._model, params, self._pipeline, self._count, place)
        return {
            "validation_loss": found["loss"],
            "validation_bits_per_byte": found["bits_per_byte"],
        }
