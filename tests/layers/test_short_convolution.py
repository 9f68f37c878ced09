"""The short convolution against its definition: documents, windows, ragged rows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax.layers.short_convolution import ShortConvolution

B, T, C, W = 3, 11, (2, 3), 4
AXES = ("heads", "value")
CONV = ShortConvolution(W, AXES, nn.initializers.normal(1.0), True, jnp.float32, jnp.float32)
X = jax.random.normal(jax.random.key(1), (B, T, *C))
PARAMS = {
    "kernel": jax.random.normal(jax.random.key(2), (W, *C)),
    "bias": jax.random.normal(jax.random.key(3), C),
}


def apply(x, *how):
    return CONV.apply({"params": PARAMS}, x, *how)


def by_definition(x, segment_ids):
    """silu(sum_i kernel_i x_{t-W+1+i} + bias), one token at a time."""
    y = np.zeros(x.shape)
    for b, t in np.ndindex(x.shape[:2]):
        y[b, t] = PARAMS["bias"]
        for i in range(W):
            s = t - W + 1 + i
            if s >= 0 and segment_ids[b, s] == segment_ids[b, t]:
                y[b, t] += PARAMS["kernel"][i] * x[b, s]
    return y / (1 + np.exp(-y))


def test_is_its_definition():
    y, window = apply(X, None)
    np.testing.assert_allclose(y, by_definition(X, np.ones((B, T))), rtol=1e-5, atol=1e-6)
    assert window is None


def test_packed_documents():
    segment_ids = jnp.asarray([[1] * 11, [1] * 2 + [2] * 1 + [3] * 8, [1] * 4 + [2] * 5 + [0] * 2])
    y, _ = apply(X, segment_ids)
    np.testing.assert_allclose(y, by_definition(X, segment_ids), rtol=1e-5, atol=1e-6)
    changed, _ = apply(jnp.where((segment_ids == 2)[..., None, None], X + 1, X), segment_ids)
    other = segment_ids != 2
    np.testing.assert_array_equal(y[other], changed[other])


@pytest.mark.parametrize("cut", range(1, T))
def test_a_window_continues_rows_without_documents(cut):
    want, _ = apply(X, None)
    first, window = apply(X[:, :cut], None, jnp.zeros((B, W - 1, *C)))
    second, _ = apply(X[:, cut:], None, window)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cut", range(1, T))
def test_a_window_continues_documents(cut):
    """Row 0 ends inside the first part, row 1 begins documents on both sides, row 2 is padding."""
    segment_ids = jnp.asarray([[1] * 11, [1] * 2 + [2] * 1 + [3] * 8, [1] * 4 + [2] * 7])
    want = by_definition(X, segment_ids)
    first, window = apply(X[:, :cut], segment_ids[:, :cut], jnp.zeros((B, W - 1, *C)))
    # A chunk of padding alone, of any values, keeps the window.
    _, window = apply(X[:, :2] + 7, jnp.zeros((B, 2), jnp.int32), window, jnp.ones(B, bool))
    continues = segment_ids[:, cut] == segment_ids[:, cut - 1]
    second, _ = apply(X[:, cut:], segment_ids[:, cut:], window, continues)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), want, rtol=1e-5, atol=1e-6)


def test_right_padding_is_not_kept():
    lengths = np.asarray([5, 2, 11])
    real = jnp.asarray(np.arange(T) < lengths[:, None], jnp.int32)
    _, window = apply(X, real, jnp.zeros((B, W - 1, *C)))
    padded = jnp.pad(X, ((0, 0), (W - 1, 0), (0, 0), (0, 0)))
    for b, n in enumerate(lengths):
        np.testing.assert_array_equal(window[b], padded[b, n : n + W - 1])


def test_sums_of_bfloat16_are_float32():
    conv = ShortConvolution(W, AXES, nn.initializers.normal(1.0), True, jnp.bfloat16, jnp.float32)
    x = X.astype(jnp.bfloat16)
    y, window = conv.apply({"params": PARAMS}, x, None, jnp.zeros((B, W - 1, *C), jnp.bfloat16))
    assert y.dtype == window.dtype == jnp.bfloat16
    want = by_definition(np.asarray(x, np.float32), np.ones((B, T)))
    np.testing.assert_array_equal(y, jnp.asarray(want, jnp.float32).astype(jnp.bfloat16))
