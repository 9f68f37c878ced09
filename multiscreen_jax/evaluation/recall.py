"""Accuracy of associative recall, for every length and number of pairs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from multiscreen_jax.data import DataConfig, open_pipeline
from multiscreen_jax.evaluation.perplexity import evaluate


def mqar_accuracy(
    model: nn.Module,
    params: Any,
    data: DataConfig,
    max_batches: int | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """How many questions of the validation parts of "mqar" a model answers right.

    Args:
      model, params: any of this library's models.
      data: with source "mqar"; `data.mqar.valid` says what is asked.
      max_batches: stop each part after so many batches; None reads all.
      progress: called with each row when it is done.

    Returns:
      rows: of every part length, pairs, examples, answers (scored positions), accuracy (the
        share of them where the right value alone has the largest logit), loss (nats).
      accuracy, loss: over the scored positions of all parts.
      example_accuracy: mean over examples of each one's accuracy (zoology's "valid/accuracy"),
        in which parts with few pairs weigh more.

    Raises:
      ValueError: another source.

    Cost: one forward pass, compiled once per length; parts are not padded to each other.
    """
    if data.source != "mqar":
        raise ValueError(f"data.source is {data.source!r}; allowed: mqar")
    rows = []
    for part in data.mqar.valid:
        alone = dataclasses.replace(data, mqar=dataclasses.replace(data.mqar, valid=(part,)))
        found = evaluate(model, params, open_pipeline(alone, "valid"), max_batches)
        length, pairs, _ = part
        counts = {"examples": found["tokens"] // pairs, "answers": found["tokens"]}
        scores = {"accuracy": found["accuracy"], "loss": found["loss"]}
        rows.append({"length": length, "pairs": pairs, **counts, **scores})
        if progress is not None:
            progress(rows[-1])
    return {
        "rows": rows,
        "accuracy": _mean(rows, "accuracy", "answers"),
        "loss": _mean(rows, "loss", "answers"),
        "example_accuracy": _mean(rows, "accuracy", "examples"),
    }


def _mean(rows: list[dict[str, Any]], value: str, weight: str) -> float:
    total = sum(row[weight] for row in rows)
    return sum(row[value] * row[weight] for row in rows) / total
