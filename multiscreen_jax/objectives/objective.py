"""What an objective is to the trainer.

    loss of a step = sum of `total` over the batch / `count` of the batch
                     + for each part of the batch, the sum of `auxiliary` / number of parts

A step's batch may be computed in parts (train.accumulate) whose totals are added up. `count` must
therefore follow from the batch alone. What modules sow is of one part, and its mean over the parts
is taken: a balance of experts over a part is not that over the batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, Key

from multiscreen_jax.jitted import jitted
from multiscreen_jax.values import Value

Batch = dict[str, Array]


class Loss(NamedTuple):
    """What an objective makes of a batch, or of a part of it.

    Attributes:
        total: sum of the losses of what counts; differentiated.
        auxiliary: further losses by name, already weighted; differentiated.
        metrics: numbers to log by name.
        carry: what the next step gets, as `init_carry` made it.
    """

    total: Float[Array, ""]
    auxiliary: dict[str, Float[Array, ""]]
    metrics: dict[str, Float[Array, ""]]
    carry: Any = None


class Work(NamedTuple):
    """The work of one step: how many units, what they are called, and FLOPs of the model."""

    units: float
    name: str
    flops: float


@dataclasses.dataclass(frozen=True)
class Objective(Value):
    """What is learned of a batch; a frozen dataclass derives from it.

    Attributes:
        fields: the arrays of a batch that it needs.
    """

    fields: ClassVar[tuple[str, ...]] = ("tokens",)

    def count(self, batch: Batch) -> Float[Array, ""]:
        """How much of a batch counts: what the sum of losses is divided by."""
        raise NotImplementedError(f"{type(self).__name__} does not define count")

    def loss(
        self, model: nn.Module, params: Any, batch: Batch, key: Key[Array, ""] | None, carry: Any
    ) -> Loss:
        """Losses of a batch. `key`, of this step and part, drives what is random; None: nothing is.

        It is derived from (train.seed, step), so that a resumed run draws the same.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define loss")

    def init_carry(self, model: nn.Module, rows: int) -> Any:
        """What the first step gets of steps before it: arrays [rows, ...], saved with the state."""
        del model, rows
        return None

    def work(self, config: Any, rows: int, length: int) -> Work:
        """The work of one step on rows of this length, by a model of this config."""
        return Work(rows * length, "tokens", 3 * rows * config.forward_flops(length))

    def evaluate(
        self, model: nn.Module, params: Any, pipeline: Any, batches: int, place: Callable[..., Any]
    ) -> dict[str, float]:
        """Numbers on the first batches of a split; `loss`, the mean of what counts, among them."""
        step = jitted(self._sums, model, params)
        found = np.zeros(2)
        for number in range(batches):
            held = pipeline.batch(number)
            batch = place({name: held[name] for name in self.fields})
            found += np.asarray(jax.device_get(step(params, batch)), np.float64)
        total, count = found.tolist()
        return {"loss": total / count if count else 0.0}

    def _sums(self, model: nn.Module, params: Any, batch: Batch) -> tuple[Array, Array]:
        carry = self.init_carry(model, len(batch[self.fields[0]]))
        return self.loss(model, params, batch, None, carry).total, self.count(batch)
