"""Small models of the linear family, hybrids included, with weights that leave nothing hidden."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from multiscreen_jax.models import (
    AttentionLayers,
    DeltaNetConfig,
    GatedDeltaNetConfig,
    LogLinearGatedDeltaNetConfig,
    LogLinearMamba2Config,
    Mamba2Config,
    RetNetConfig,
    ScreeningLayers,
    build,
)

_SHAPE = {"vocab_size": 61, "model_dim": 16, "num_layers": 2, "key_dim": 6, "value_dim": 5}
_LEVELS = {"num_levels": 9, "max_documents": 4}
_MAMBA2 = {**_SHAPE, "num_heads": 4, "num_groups": 2}
_DELTA = {**_SHAPE, "num_heads": 2, "feed_forward_dim": 24}
CONFIGS = {
    "retnet": RetNetConfig(**_SHAPE, num_heads=2, feed_forward_dim=24),
    "deltanet": DeltaNetConfig(**_DELTA, tie_embeddings=True, negative_eigenvalues=True),
    "mamba2": Mamba2Config(**_MAMBA2),
    "gdn": GatedDeltaNetConfig(**_DELTA),
    "log-linear-mamba2": LogLinearMamba2Config(**_MAMBA2, feed_forward_dim=24, **_LEVELS),
    "log-linear-gdn": LogLinearGatedDeltaNetConfig(**_DELTA, **_LEVELS),
    "gdn+attention": GatedDeltaNetConfig(
        **_DELTA, pattern=("mixer", "attention"), attention=AttentionLayers(num_heads=2)
    ),
    "log-linear-gdn+screening": LogLinearGatedDeltaNetConfig(
        **{**_DELTA, "num_layers": 4},
        **_LEVELS,
        pattern=("mixer", "screening"),
        screening=ScreeningLayers(num_heads=2, key_dim=4, value_dim=6, window_threshold=9.0),
    ),
}
NAMES = tuple(CONFIGS)


@functools.cache
def params_of(name):
    """Initial parameters plus noise of 0.2: at the initial ones mixers hardly move the stream."""
    model = build(CONFIGS[name])
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.2 * rng.standard_normal(leaf.shape), leaf.dtype), params
    )


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens, segment_ids):
    return build(config).apply({"params": params}, tokens, segment_ids).logits


def logits(name, tokens, segment_ids=None, params=None, **fields):
    """Logits of a model of `CONFIGS`, some of its fields replaced."""
    config = dataclasses.replace(CONFIGS[name], **fields)
    return _logits(config, params_of(name) if params is None else params, tokens, segment_ids)
