"""A tiny Multiscreen with windows and widths of all kinds, and dense counts to compare with."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from multiscreen_jax.models import Multiscreen, MultiscreenConfig
from pallas_kernels.screening.reference import relevance

# Just above a whole number, whole, below and above a block of the counts, longer than the text;
# the last tile of each layer exceeds the trained length and becomes infinite.
WINDOWS = np.array([[1.0001, 2.0, 128.0, 900.0], [2.00001, 40.5, 129.0, 90000.0]])
WIDTHS = np.array([[0.9, 0.5, 0.02, 0.7], [0.6, 0.8, 0.45, 0.9]])


@functools.cache
def tiny() -> tuple[Multiscreen, Any]:
    config = MultiscreenConfig(
        vocab_size=50,
        model_dim=12,
        num_layers=2,
        num_heads=4,
        key_dim=5,
        value_dim=6,
        trained_length=500,
        infinite_windows=True,
        precision="highest",
        implementation="reference",  # compiles fast, and these texts are short
    )
    model = Multiscreen(config)
    params = jax.tree.map(
        np.asarray, jax.jit(model.init)(jax.random.key(0), np.zeros((1, 4), np.int32))
    )
    params = params["params"]
    params["layers"]["tiles"] |= {
        "log_window": np.log(WINDOWS - 1).astype(np.float32),
        "logit_width": np.log(WIDTHS / (1 - WIDTHS)).astype(np.float32),
    }
    return model, params


def packed_rows(batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens, and segment ids: two documents and some padding in every row but the first."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 50, (batch, length)).astype(np.int32)
    segments = np.ones((batch, length), np.int32)
    for row in range(1, batch):
        segments[row, length // 3 + row :] = 2
        segments[row, length - 9 * row :] = 0
    return tokens, segments


def dense_counts(model: Any, params: Any, tokens: Any, segments: Any) -> dict[str, np.ndarray]:
    """in_window, accepted, silent_queries [N, H], counted on whole maps."""
    documents = None if segments is None else jnp.asarray(segments)
    _, state = jax.jit(
        lambda: model.apply(
            {"params": params}, tokens, documents, method="trunk", mutable=["intermediates"]
        )
    )()
    sown = state["intermediates"]["layers"]["tiles"]
    if segments is None:
        segments = np.ones(tokens.shape, np.int32)
    position = np.arange(tokens.shape[1])
    distance = position[:, None] - position
    same = (segments[:, :, None] == segments[:, None]) & (segments[:, :, None] > 0)
    counts: dict[str, list] = {"in_window": [], "accepted": [], "silent_queries": []}
    for layer in range(len(sown["window"])):
        q, k, window, width = (sown[name][layer] for name in ("query", "key", "window", "width"))
        maps = np.asarray(relevance(q, k, window, width, jnp.asarray(segments)))
        near = (distance >= 0) & (distance < np.asarray(window)[:, None, None])
        silent = ~(maps > 0).any(-1) & (segments[:, None] > 0)
        counts["in_window"].append((near[None] & same[:, None]).sum((0, 2, 3)))
        counts["accepted"].append((maps > 0).sum((0, 2, 3)))
        counts["silent_queries"].append(silent.sum((0, 2)))
    return {name: np.array(rows) for name, rows in counts.items()}
