"""What every architecture in the list is checked for, on the small model of its record."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from multiscreen_jax import losses
from multiscreen_jax.models.registry import ARCHITECTURES, build

ALL = {each.name: each for each in ARCHITECTURES}
LENGTH = 23
TOKENS = np.random.default_rng(1).integers(0, 61, (2, LENGTH), np.int32)
DOCUMENTS = np.array([[1] * 9 + [2] * 11 + [0] * 3, [1] * 4 + [2] * 1 + [3] * 18], np.int32)


@functools.cache
def config_of(name, **fields):
    """The small config, some fields replaced."""
    each = ALL[name]
    return each.config(**{**each.contract.fields, **fields})


@functools.cache
def params_of(name):
    """Initial parameters plus noise of 0.2: at the initial ones mixers hardly move the stream."""
    model = build(config_of(name))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.2 * rng.standard_normal(leaf.shape), leaf.dtype), params
    )


def model_of(name, **fields):
    return build(config_of(name, **fields))


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, tokens, segment_ids):
    return model.apply({"params": params}, tokens, segment_ids).logits


def logits(name, tokens=TOKENS, segment_ids=None, **fields):
    """Logits of the whole rows, always through one compiled shape."""
    ids = np.ones_like(tokens) if segment_ids is None else segment_ids
    return np.asarray(_logits(model_of(name, **fields), params_of(name), tokens, ids))


@functools.partial(jax.jit, static_argnums=0)
def _loss_and_gradients(model, params, batch):
    return jax.value_and_grad(lambda p: losses.next_token(model, p, batch))(params)


def loss_and_gradients(name, **fields):
    batch = {"tokens": TOKENS, "segment_ids": DOCUMENTS}
    return _loss_and_gradients(model_of(name, **fields), params_of(name), batch)
