"""MiPE: exact at any position, right in its derivative, defined at infinity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax.layers.positions import document_positions, mipe, mipe_gamma, mipe_turns


def exact_turned(x, positions, window, threshold):
    """float64 numpy, the rotation from the definition."""
    w = np.asarray(window, np.float64)
    gamma = np.where(w < threshold, (np.cos(np.pi * w / threshold) + 1) / 2, 0)
    phi = np.pi * np.asarray(positions, np.float64)[..., None] * gamma / w
    a0, a1 = x[..., 0], x[..., 1]
    first = [a0 * np.cos(phi) - a1 * np.sin(phi), a0 * np.sin(phi) + a1 * np.cos(phi)]
    return np.concatenate([np.stack(first, -1), x[..., 2:]], -1)


@pytest.mark.parametrize("offset", [0, 100_000, 1_000_000])
def test_relevance_is_accurate_at_any_offset(offset):
    rng = np.random.default_rng(0)
    window = np.float32([2.5, 7.3, 100.0])
    width, length = 0.1, 64
    x = rng.normal(size=(2, 1, length, 3, 4))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    x[1] = x[0] + 0.05 * x[1]  # similar keys, so that many pairs are accepted
    x[1] /= np.linalg.norm(x[1], axis=-1, keepdims=True)
    positions = np.arange(offset, offset + length)[None]

    def relevance(q, k):
        s = np.einsum("bthk,bshk->bhts", np.float64(q), np.float64(k))
        return np.maximum(1 - (1 - s) / width, 0) ** 2

    exact = relevance(*(exact_turned(y, positions, window, 256.0) for y in x))
    turns = mipe_turns(jnp.asarray(positions), jnp.asarray(window), 256.0)
    given = relevance(*(mipe(jnp.asarray(y, jnp.float32), turns) for y in x))
    assert (exact > 0.1).mean() > 0.01
    np.testing.assert_allclose(given, exact, atol=1e-4)


def test_derivative_in_the_window_matches_finite_differences():
    with jax.enable_x64(True):
        positions = jnp.arange(9)[None]
        window = jnp.asarray([2.0, 31.7, 200.0])

        def angle(w):
            return jnp.sum(mipe_turns(positions, w, 256.0) * jnp.arange(9.0)[None, :, None])

        step = 1e-6
        numeric = [
            (angle(window.at[h].add(step)) - angle(window.at[h].add(-step))) / (2 * step)
            for h in range(3)
        ]
        np.testing.assert_allclose(jax.grad(angle)(window), numeric, rtol=1e-6)
    # The integer form used in float32 has the same derivative.
    single = jax.grad(
        lambda w: jnp.sum(mipe_turns(positions, w, 256.0) * jnp.arange(9.0)[None, :, None])
    )(jnp.float32(window))
    np.testing.assert_allclose(single, numeric, rtol=1e-4)


@pytest.mark.parametrize("window", [256.0, 1e6, np.inf])
def test_no_encoding_from_the_threshold_on(window):
    w = jnp.asarray([window], jnp.float32)
    assert mipe_gamma(w, 256.0)[0] == 0
    positions = jnp.arange(5)[None]
    assert not np.any(mipe_turns(positions, w, 256.0))
    gradient = jax.grad(lambda w: mipe_turns(positions, w, 256.0).sum())(w)
    np.testing.assert_array_equal(gradient, 0)


def test_wrapped_positions_follow_the_definition():
    window, boundary = np.float64(5.37), 24
    i = np.arange(60)
    expected = np.where(i < boundary, i, np.fmod(i, window))
    gamma = (np.cos(np.pi * window / 16) + 1) / 2
    expected = expected * gamma / (2 * window)
    with jax.enable_x64(True):
        turns = mipe_turns(jnp.asarray(i)[None], jnp.asarray([window]), 16.0, boundary)[0, :, 0]
        np.testing.assert_allclose(turns, expected - np.round(expected), atol=1e-12)


def test_positions_restart_with_each_document():
    segments = jnp.asarray([[1, 1, 1, 2, 2, 0, 0], [3, 4, 4, 4, 4, 4, 5]])
    expected = [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 0]]
    np.testing.assert_array_equal(document_positions(segments, 2, 7), expected)
    np.testing.assert_array_equal(document_positions(None, 2, 3), [[0, 1, 2]] * 2)
