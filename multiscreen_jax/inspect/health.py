"""Screening health: a few numbers per layer that say whether a Multiscreen's tiles are at work."""

from typing import Any

import numpy as np

from multiscreen_jax.inspect.relevance import acceptance
from multiscreen_jax.inspect.tiles import check_model

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def health(model: Any, params: Any, tokens: Any, segment_ids: Any = None) -> dict[str, np.ndarray]:
    """Screening health of every layer on a batch, as flat metrics for a training log.

    Args:
        model, params: a Multiscreen and its parameters.
        tokens: integers [B, T] or [T], for example a training batch.
        segment_ids: documents of packed rows, the same shape.

    Returns, for each layer n (counted from 0):
        rejected/layer_n: share of the pairs inside the tiles' windows that are rejected.
        silent/layer_n: share of (query, tile) that accept no key at all.
        dead_tiles/layer_n: number of tiles that accept not one key of the whole batch. Such a tile
            adds exactly zero everywhere and every one of its parameters gets exactly zero
            gradient, like a dead unit of a ReLU network: other data may revive it, this batch
            cannot.
        window/layer_n, width/layer_n: float [5], minimum, lower quartile, median, upper quartile
            and maximum over the layer's tiles. Each is the nearest tile's own value, so an
            infinite window stays infinite and does not blur its neighbours.

    Raises:
        TypeError: another kind of model.

    Cost: see `acceptance`; one compiled function, kept over calls.
    """
    check_model(model, "health")
    found = acceptance(model, params, tokens, segment_ids)
    metrics: dict[str, np.ndarray] = {}
    for layer in range(len(found.window)):
        pairs, accepted = found.in_window[layer].sum(), found.accepted[layer].sum()
        values = {
            "rejected": 1 - accepted / max(pairs, 1),
            "silent": found.share_silent()[layer].mean(),
            "dead_tiles": np.sum(found.accepted[layer] == 0),
            "window": np.quantile(found.window[layer], QUANTILES, method="nearest"),
            "width": np.quantile(found.width[layer], QUANTILES, method="nearest"),
        }
        metrics |= {f"{name}/layer_{layer}": np.asarray(x) for name, x in values.items()}
    return metrics
