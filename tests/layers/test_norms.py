"""Norms with gates in both orders, and unit length, against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax.layers.norms import GateThenNorm, NormThenGate, l2_normalize

X = jax.random.normal(jax.random.key(1), (2, 3, 4, 6))
GATE = jax.random.normal(jax.random.key(2), (2, 3, 4, 6))
SILU = np.asarray(GATE / (1 + np.exp(-GATE)))
SETTINGS = (1e-2, jnp.float32, jnp.float32)


def rms(x, axes):
    return x / np.sqrt(np.mean(x**2, axis=axes, keepdims=True) + 1e-2)


def test_norm_then_gate_is_by_head():
    scale = jnp.arange(1.0, 7)
    y = NormThenGate(*SETTINGS).apply({"params": {"scale": scale}}, X, GATE)
    np.testing.assert_allclose(y, rms(X, -1) * np.arange(1, 7) * SILU, rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_gate_then_norm_is_by_group(groups):
    scale = jnp.arange(24.0).reshape(4, 6)
    norm = GateThenNorm(*SETTINGS, groups)
    y = norm.apply({"params": {"head_scale": scale}}, X, GATE)
    product = (X * SILU).reshape(2, 3, groups, -1)
    want = rms(product, -1).reshape(X.shape) * np.arange(24).reshape(4, 6)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)


def test_unit_length():
    want = X / np.sqrt(np.sum(X.astype(np.float64) ** 2, -1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(l2_normalize(X), want, rtol=1e-6)
    assert l2_normalize(jnp.zeros((2, 3), jnp.bfloat16)).dtype == jnp.float32
    assert not np.any(jax.grad(lambda x: l2_normalize(x).sum())(jnp.zeros(3)) - 1e3)
