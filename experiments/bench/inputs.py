"""What the contenders of one comparison share: weights, tokens, and the contents of caches."""

from pathlib import Path
from typing import Any

import numpy as np

SHAPE_FIELDS = (
    "vocab_size",
    "model_dim",
    "num_layers",
    "num_heads",
    "key_dim",
    "value_dim",
    "window_threshold",
)


def write_weights(folder: Path, config: Any, length: int, sources: list[str], seed: int = 0):
    """Write a freshly initialised Multiscreen under every source's names, and random tokens.

    Makes shape.npz, tokens.npy [1, length + 1] and one npz for every source of `convert`.
    """
    import jax
    import jax.numpy as jnp

    from multiscreen_jax import convert
    from multiscreen_jax.models import Multiscreen

    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (1, length + 1))
    np.save(folder / "tokens.npy", tokens.astype(np.int32))
    np.savez(folder / "shape.npz", **{name: getattr(config, name) for name in SHAPE_FIELDS})
    variables = jax.jit(Multiscreen(config).init)(jax.random.key(seed), jnp.zeros((1, 8), int))
    for source in sources:
        named = convert.to_torch(source, variables["params"], config)
        np.savez(folder / f"{source.replace('/', '-')}.npz", **named)


def read_shape(folder: str) -> dict[str, Any]:
    """The config fields that `write_weights` was given."""
    return {name: value.item() for name, value in np.load(f"{folder}/shape.npz").items()}


def cache_entries(layer: int, tile: int, count: int, key_dim: int, value_dim: int) -> np.ndarray:
    """Random cache entries of a tile [count, K + V]: a unit key and a unit value each.

    Entry 0 is the latest position, entry 1 the one before, so that the entries of a short ring are
    the first ones of a long cache.
    """
    random = np.random.default_rng([layer, tile])
    entries = random.standard_normal((count, key_dim + value_dim), np.float32)
    for part in (entries[:, :key_dim], entries[:, key_dim:]):
        part /= np.linalg.norm(part, axis=-1, keepdims=True)
    return entries
