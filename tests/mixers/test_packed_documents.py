"""Packed documents, for every recurrent mixer: values and gradients of each alone, bit for bit
apart, wherever a document starts in a chunk. The short convolution is part of the mixer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax.mixers.mixer import Context
from tests.marks import slow_unless
from tests.models.linear_family import CONFIGS

LENGTH, SECOND = 140, 70
STARTS = (1, 37, 63, 64, 65)
NAMES = ("retnet", "deltanet", "mamba2", "gdn", "log-linear-mamba2", "log-linear-gdn")


@functools.cache
def _mixer(name):
    """The mixer and weights of size one."""
    config = CONFIGS[name]
    mixer = config.mixer().build(config.common)
    x = jnp.zeros((1, 4, config.model_dim))
    params = mixer.init(jax.random.key(0), x, None, _context(mixer, None, 4))["params"]
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noise = [
        0.3 * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)
    ]
    return mixer, jax.tree.map(jnp.add, params, jax.tree.unflatten(treedef, noise))


def _context(mixer, segment_ids, length, positions=None):
    positions = jnp.arange(length)[None] if positions is None else positions
    return Context(segment_ids, positions, mixer.prepare(positions, jnp.float32))


def _x(length):
    return jax.random.normal(jax.random.key(5), (1, length, CONFIGS["gdn"].model_dim))


@functools.partial(jax.jit, static_argnums=0)
def _packed(name, params, x, segment_ids, positions, weights):
    """(y, gradients of the weighted sum of y) of packed rows."""
    mixer, _ = _mixer(name)
    context = _context(mixer, segment_ids, x.shape[1], positions)

    def loss(params, x):
        y = mixer.apply({"params": params}, x, None, context).y
        return jnp.sum(y * weights), y

    (_, y), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
    return y, *grads


def _close(got, want, label, tolerance=1e-5):
    error = np.linalg.norm(got - want) / (np.linalg.norm(want) + 1e-12)
    assert error < tolerance, f"{label}: relative error {error:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_unless(("mamba2",), NAMES, exhaustive=NAMES))
def test_a_document_gives_what_it_gives_alone(name):
    _, params = _mixer(name)
    x = _x(LENGTH)
    cotangent = jax.random.normal(jax.random.key(6), (1, SECOND, x.shape[-1]))
    index = np.arange(LENGTH)
    ones = jnp.ones((1, SECOND), jnp.int32)
    place = jnp.arange(SECOND)[None]
    for start in STARTS:
        inside = (index >= start) & (index < start + SECOND)
        segment_ids = jnp.asarray(np.where(index < start, 1, np.where(inside, 2, 0)))[None]
        positions = jnp.asarray(np.where(index < start, index, index - start))[None]
        weights = jnp.zeros_like(x).at[:, start : start + SECOND].set(cotangent)
        y, dparams, dx = _packed(name, params, x, segment_ids, positions, weights)
        alone = x[:, start : start + SECOND]
        want, want_dparams, want_dx = _packed(name, params, alone, ones, place, cotangent)
        _close(y[:, inside], want, f"y at {start}")
        _close(dx[:, inside], want_dx, f"dx at {start}")
        assert not np.any(dx[:, ~inside]), "another document's gradient"
        for path, leaf in jax.tree_util.tree_flatten_with_path(dparams)[0]:
            expected = functools.reduce(lambda tree, key: tree[key.key], path, want_dparams)
            _close(leaf, expected, f"gradient of {jax.tree_util.keystr(path)} at {start}", 2e-5)

        # A change of one document leaves the others' bits alone.
        noise = jax.random.normal(jax.random.key(7), x.shape)
        for document, other in ((1, 2), (2, 1)):
            mask = segment_ids == document
            changed = jnp.where(mask[..., None], x + noise, x)
            z, _, _ = _packed(name, params, changed, segment_ids, positions, weights)
            np.testing.assert_array_equal(y[segment_ids == other], z[segment_ids == other])
