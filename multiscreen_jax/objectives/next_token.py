"""Next-token prediction."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float, Key

from multiscreen_jax import losses
from multiscreen_jax.evaluation import evaluate
from multiscreen_jax.objectives.objective import Batch, Loss, Objective


@dataclasses.dataclass(frozen=True)
class NextToken(Objective):
    """Cross-entropy of every next token that counts, in nats: `losses.next_token`.

    Losses that modules sow are added. Validation has accuracy, and of text bits per byte.
    """

    def count(self, batch: Batch) -> Float[Array, ""]:
        return losses.targets_and_weights(batch)[1].sum()

    def loss(
        self, model: nn.Module, params: Any, batch: Batch, key: Key[Array, ""] | None, carry: Any
    ) -> Loss:
        total, auxiliary, metrics = losses.collected_sum(model, params, batch, key)
        return Loss(total, auxiliary, metrics, carry)

    def evaluate(
        self, model: nn.Module, params: Any, pipeline: Any, batches: int, place: Callable[..., Any]
    ) -> dict[str, float]:
        found = evaluate(model, params, pipeline, batches, place)
        of_text = {"bits_per_byte": found["bits_per_byte"]} if found["bytes"] else {}
        return {"loss": found["loss"], "accuracy": found["accuracy"], **of_text}
