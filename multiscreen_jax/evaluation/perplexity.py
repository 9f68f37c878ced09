"""Loss, accuracy and bits per byte of a data split, and loss by position in the sequence.

Sums over targets, not means of batches' means: every target counts once, however the split is
cut into batches and however many rows of padding complete the last one.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from multiscreen_jax import losses
from multiscreen_jax.data import Pipeline
from multiscreen_jax.data.pipeline import device_arrays
from multiscreen_jax.jitted import jitted

Batch = dict[str, Any]


def evaluate(
    model: nn.Module,
    params: Any,
    pipeline: Pipeline,
    max_batches: int | None = None,
    place: Callable[[Batch], Batch] | None = None,
) -> dict[str, float]:
    """How well a model predicts the text of a pipeline, which is read from its beginning.

    Args:
      model: any of this library's models.
      params: its parameters.
      pipeline: usually `mj.data.open_pipeline(config, "valid")`.
      max_batches: stop after so many batches; None reads one whole pass.
      place: puts a batch on the devices of a mesh (see `sharding.place_batch`); None: the default
        device. Over several processes all must call, each with the rows that its devices hold.

    Returns:
      loss: mean nats per target, weighted by the pipeline's loss_mask, as in training.
      perplexity: exp(loss).
      bits_per_byte: information of all scored targets (weight > 0, each counted fully) over the
        bytes of text behind them; NaN when there are none. It says nothing of text that the
        tokenizer loses, see `Pipeline.lost_share`.
      accuracy: share of scored targets to which the model gives the largest logit of all.
      tokens, bytes: how many scored targets, and bytes of text behind them.

    Raises:
      ValueError: nothing to read, or an endless pipeline without max_batches.

    Cost: one forward pass per batch, and never B x T x O logits (see `losses`). Compiled once per
    model and batch shape, over all calls.
    """
    step = jitted(_sums, model, params)
    # Weighted nats, weights; of scored targets: nats, hits, how many. And bytes of text.
    totals = np.zeros(5), np.zeros(())
    pending = None
    for batch in read_batches(pipeline, max_batches):
        batch = {**device_arrays(batch), "row_bytes": pipeline.row_bytes(batch)}
        dispatched = step(params, place(batch) if place else batch)
        if pending is not None:  # fetched one batch late: the host never waits idly
            totals = _add(totals, pending)
        pending = dispatched
    sums, text_bytes = _add(totals, pending)
    weighted_nats, weights, nats, hits, tokens = sums.tolist()
    loss = _ratio(weighted_nats, weights)
    return {
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": _ratio(nats / math.log(2), float(text_bytes)),
        "accuracy": _ratio(hits, tokens),
        "tokens": int(tokens),
        "bytes": int(text_bytes),
    }


def loss_by_position(
    model: nn.Module,
    params: Any,
    pipeline: Pipeline,
    buckets: int | Sequence[int] = 16,
    max_batches: int | None = None,
    place: Callable[[Batch], Batch] | None = None,
) -> list[dict[str, float]]:
    """Mean loss of the targets in each stretch of positions, positions counted in the row.

    Rows of the stream packing continue an earlier text, so position says how much context the
    model can see; with a model that generalises, loss stays flat beyond the training length.
    (Multiscreen paper, Fig. 5, in buckets instead of a moving mean.)

    Args:
      buckets: how many, of (nearly) equal size; or their edges, ascending, as in
        `[0, 64, 128, 1024]`: bucket i holds the targets edges[i] <= t < edges[i + 1], where
        target t of a row is predicted from its first t + 1 tokens.
      model, params, pipeline, max_batches, place: as for `evaluate`.

    Returns:
      One row per bucket: start, end, tokens (scored targets), loss (nats, unweighted),
      perplexity. A bucket without targets has loss NaN.
    """
    step = jitted(_sums_by_position, model, params)
    totals = np.zeros((2, 0))
    for batch in read_batches(pipeline, max_batches):
        sums = np.asarray(step(params, place(batch) if place else batch), np.float64)
        totals = totals + sums if totals.shape[1] else sums
    edges = bucket_edges(buckets, totals.shape[1])
    rows = []
    for start, end in itertools.pairwise(edges):
        nats, tokens = totals[:, start:end].sum(axis=1).tolist()
        loss = _ratio(nats, tokens)
        row = {"start": start, "end": end, "tokens": int(tokens), "loss": loss}
        rows.append({**row, "perplexity": perplexity(loss)})
    return rows


def perplexity(loss: float) -> float:
    """exp(loss); inf where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def bucket_edges(buckets: int | Sequence[int], length: int) -> list[int]:
    """Edges of position buckets of a row of `length` targets, checked."""
    if isinstance(buckets, int):
        if buckets < 1:
            raise ValueError(f"buckets is {buckets}; allowed: an integer >= 1, or a list of edges")
        count = min(buckets, length)
        return [round(i * length / count) for i in range(count + 1)]
    edges = [int(edge) for edge in buckets]
    ascending = all(low < high for low, high in itertools.pairwise(edges))
    if len(edges) < 2 or not ascending or edges[0] < 0 or edges[-1] > length:
        raise ValueError(
            f"buckets is {edges}; allowed: at least two ascending edges between 0 and the row's "
            f"length, {length}"
        )
    return edges


def read_batches(pipeline: Pipeline, max_batches: int | None) -> Iterator[Batch]:
    """The first batches of a pipeline: one pass, or max_batches if that is less."""
    if max_batches is not None and max_batches < 1:
        raise ValueError(f"max_batches is {max_batches}; allowed: an integer >= 1, or None")
    counts = [count for count in (max_batches, pipeline.num_batches) if count is not None]
    if not counts:
        raise ValueError("this pipeline is endless: give max_batches, or use its valid split")
    if min(counts) == 0:
        raise ValueError("this pipeline holds no batch: it needs more data, or a shorter length")
    with contextlib.closing(pipeline.iterate(0)) as batches:
        yield from itertools.islice(batches, min(counts))


def _add(totals: Any, found: Any) -> Any:
    return jax.tree.map(lambda total, x: total + np.asarray(x, np.float64), totals, found)


def _sums(model: nn.Module, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    nats, hits, weights = losses.token_scores(model, params, batch)
    scored = weights > 0
    nats = jnp.where(scored, nats, 0)
    counts = [(hits & scored).astype(nats.dtype), scored.astype(nats.dtype)]
    parts = jnp.stack([nats * weights, weights, nats, *counts])
    sums = parts.sum(axis=2).sum(axis=1)  # in two stages, which keeps float32 sums accurate
    # Bytes are summed here too, because several processes may hold, and have counted, one row.
    return sums, jnp.sum(batch["row_bytes"])


def _sums_by_position(model: nn.Module, params: Any, batch: Batch) -> jax.Array:
    nats, weights = losses.token_losses(model, params, batch)
    scored = weights > 0
    return jnp.stack([jnp.where(scored, nats, 0), scored.astype(nats.dtype)]).sum(axis=1)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
