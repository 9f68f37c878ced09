"""The GPU kernels of the linear family, interpreted, against the chunk forms."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.common.dispatch import interpret_kernels
from pallas_kernels.common.documents import documents, mask_padding
from pallas_kernels.linear_attention import gpu_walk, pallas_gpu
from pallas_kernels.linear_attention.api import repeat_groups
from pallas_kernels.linear_attention.chunked import gated_delta_rule_chunked, ssd_chunked
from pallas_kernels.linear_attention.pallas_gpu import walk
from pallas_kernels.linear_attention.tokens import Levels
from pallas_kernels.log_linear.chunked import log_linear_chunked
from pallas_kernels.log_linear.levels import empty_state
from pallas_kernels.log_linear.maps import Inputs
from tests.jax_internals import triton_kernels

NAMES = ("y", "last", "q", "k", "v", "g", "beta", "state")
INNER = gpu_walk.CHUNK.bit_length()


@pytest.fixture(autouse=True)
def _interpreted():
    with interpret_kernels():
        yield


def make(length, groups, heads, key_dim=16, value_dim=16, batch=1, seed=0):
    """q, k, v, g, beta and a state, of which a chunk leaves about a third."""
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, batch, length, groups, key_dim))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v = rng.standard_normal((batch, length, heads, value_dim))
    g, beta = rng.standard_normal((2, batch, length, heads))
    state = rng.standard_normal((batch, heads, key_dim, value_dim))
    inputs = q, k, v, -0.02 * np.abs(g), 1 / (1 + np.exp(-beta)), state
    return [jnp.asarray(x, jnp.float32) for x in inputs]


def everything(op, *inputs):
    """Results and gradients of all inputs, for fixed cotangents."""

    @jax.jit
    def run(*inputs):
        results, pullback = jax.vjp(op, *inputs)
        cotangents = [
            jnp.cos(0.7 * jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape).astype(x.dtype)
            for x in results
        ]
        return *results, *pullback(tuple(cotangents))

    return [np.asarray(x, np.float64) for x in run(*inputs)]


def kernel(delta, docs=None):
    def op(q, k, v, g, beta, state):
        beta = beta if delta else None
        y, states = walk(q, k, v, g, beta, state[:, :, None], docs, None, None)
        return y, states[:, :, 0]

    return op


def chunked(delta, docs=None):
    def op(q, k, v, g, beta, state):
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
        if not delta:
            return ssd_chunked(q, k, v, g, state, docs, 64, "highest")
        q, k = repeat_groups(q, k, v)
        return gated_delta_rule_chunked(q, k, v, g, beta, state, docs, 64, "highest")

    return op


def check(got, expected, tolerance, names=NAMES):
    for name, a, b in zip(names, got, expected, strict=True):
        assert np.isfinite(a).all(), name
        error = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)
        assert error <= tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize(
    ("delta", "groups", "heads", "length"),
    [
        (False, 1, 3, 130),
        (True, 2, 2, 130),
        pytest.param(False, 2, 4, 500, marks=pytest.mark.slow),
        pytest.param(True, 2, 2, 7, marks=pytest.mark.slow),
        pytest.param(False, 2, 2, 64, marks=pytest.mark.exhaustive),
        pytest.param(True, 1, 2, 64, marks=pytest.mark.exhaustive),
        pytest.param(False, 1, 2, 1, marks=pytest.mark.exhaustive),
        pytest.param(True, 1, 2, 500, marks=pytest.mark.exhaustive),
    ],
)
def test_equals_chunked(delta, groups, heads, length):
    inputs = make(length, groups, heads)
    check(everything(kernel(delta), *inputs), everything(chunked(delta), *inputs), 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("delta", [False, True])
def test_sizes_in_parts(delta):
    """Keys in parts, and blocks of values."""
    inputs = make(70, 1, 2, key_dim=192, value_dim=96)
    inputs = [x.astype(jnp.bfloat16) for x in inputs[:3]] + inputs[3:]
    check(everything(kernel(delta), *inputs), everything(chunked(delta), *inputs), 8e-3)


@pytest.mark.slow
@pytest.mark.parametrize("delta", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bfloat16(delta):
    inputs = make(130, 2, 2, key_dim=32, value_dim=32)
    inputs = [x.astype(jnp.bfloat16) for x in inputs[:3]] + inputs[3:]
    check(everything(kernel(delta), *inputs), everything(chunked(delta), *inputs), 8e-3)


@pytest.mark.slow
@pytest.mark.parametrize("delta", [pytest.param(False, marks=pytest.mark.slow), True])
def test_documents_and_segments(delta, monkeypatch):
    """Documents that start anywhere, in segments of two chunks."""
    monkeypatch.setattr(pallas_gpu, "_LEAST_SEGMENT", 2)
    monkeypatch.setattr(pallas_gpu, "_KEPT_BYTES", 1)
    ids = np.zeros((1, 290), np.int32)
    for n, (start, stop) in enumerate([(0, 50), (50, 160), (170, 280)]):
        ids[:, start:stop] = n + 1
    docs = documents(jnp.asarray(ids))
    *tokens, state = make(290, 1, 2)

    def of_tokens(op):
        def masked(*inputs):
            y, last = op(*mask_padding(docs.real, *inputs[:-1]), inputs[-1])
            return mask_padding(docs.real, y)[0], last

        return masked

    got = everything(of_tokens(kernel(delta, docs)), *tokens, state)
    check(got, everything(of_tokens(chunked(delta, docs)), *tokens, state), 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("delta", [pytest.param(False, marks=pytest.mark.slow), True])
def test_strong_decay(delta):
    q, k, v, g, beta, state = make(130, 1, 2)
    g = jnp.where(np.random.default_rng(1).random(g.shape) < 0.2, -50.0, g)
    inputs = q, k, v, g, beta, state
    check(everything(kernel(delta), *inputs), everything(chunked(delta), *inputs), 2e-6)


# -- levels ----------------------------------------------------------------------------------------


def fenwick(batch, chunks):
    """`reads` and `target` of one document from the first chunk on."""
    n = np.arange(chunks)
    target = [(~x & (x + 1)).bit_length() - 1 for x in n.tolist()]
    return [jnp.broadcast_to(jnp.asarray(x, jnp.int32), (batch, chunks)) for x in (n, target)]


@pytest.mark.parametrize(
    ("delta", "length", "dtype", "tolerance"),
    [
        pytest.param(True, 300, "float32", 2e-6, marks=pytest.mark.slow),
        pytest.param(False, 600, "float32", 2e-6, marks=pytest.mark.slow),
        pytest.param(True, 300, "bfloat16", 8e-3, marks=pytest.mark.slow),
        pytest.param(False, 300, "float32", 2e-6, marks=pytest.mark.exhaustive),
        pytest.param(False, 300, "bfloat16", 8e-3, marks=pytest.mark.exhaustive),
        pytest.param(True, 600, "float32", 2e-6, marks=pytest.mark.exhaustive),
    ],
)
def test_levels(delta, length, dtype, tolerance, monkeypatch):
    """In segments of three chunks."""
    monkeypatch.setattr(pallas_gpu, "_LEAST_SEGMENT", 3)
    monkeypatch.setattr(pallas_gpu, "_KEPT_BYTES", 1)
    q, k, v, g, beta, state = make(length, 1, 2, batch=1)
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    chunks = -(-length // gpu_walk.CHUNK)
    count = chunks.bit_length()  # the last chunk's write may need one more than is ever read
    rng = np.random.default_rng(2)
    scales = jnp.asarray(rng.random((*v.shape[:3], INNER + count)), jnp.float32)
    reads, target = fenwick(1, chunks)

    def by_kernel(q, k, v, g, beta, scales):
        states = jnp.zeros((*state.shape[:2], count, *state.shape[2:]))
        levels = Levels(scales, reads, target)
        return walk(q, k, v, g, beta if delta else None, states, None, levels, None)[:1]

    def by_chunks(q, k, v, g, beta, scales):
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
        inputs = Inputs(*repeat_groups(q, k, v), v, g, beta if delta else None, scales)
        empty = empty_state(1, 2, INNER + count, *state.shape[2:], jnp.dtype("float32"))
        return (log_linear_chunked(inputs, empty, False, None, 64, 1, "highest")[0],)

    inputs = q, k, v, g, beta, scales
    names = ("y", "q", "k", "v", "g", "beta", "scales")
    check(everything(by_kernel, *inputs), everything(by_chunks, *inputs), tolerance, names)


@pytest.mark.slow
def test_levels_of_ones_are_one_state():
    """With all scales one, levels are a partition of the state; initial states have gradients too.

    Three levels, the last of which takes all that is older, from chunk 10 on: level 0 is empty, and
    chunk 11 writes to the last level what it already holds.
    """
    length, chunks, count = 320, np.arange(10, 15), 3
    reads = (chunks & 3) | 4
    target = np.minimum([(~n & (n + 1)).bit_length() - 1 for n in chunks.tolist()], 2)
    masks = (jnp.asarray(x[None], jnp.int32) for x in (reads, target))
    levels = Levels(jnp.ones((1, length, 2, INNER + count)), *masks)
    q, k, v, g, beta, state = make(length, 2, 2)
    rng = np.random.default_rng(3)
    parts = jnp.asarray(rng.standard_normal((1, 2, count, *state.shape[2:])), jnp.float32)

    def with_levels(q, k, v, g, beta, parts):
        y, last = walk(q, k, v, g, beta, parts, None, levels, None)
        return y, jnp.sum(last, axis=2)

    def without(q, k, v, g, beta, parts):
        return chunked(True)(q, k, v, g, beta, parts[:, :, 1] + parts[:, :, 2])

    inputs = q, k, v, g, beta, parts
    check(everything(with_levels, *inputs), everything(without, *inputs), 2e-6)


# -- what it lowers to, and what it refuses --------------------------------------------------------


def lowered(dtype, delta):
    """Triton's intermediate language of both kernels."""
    q, v = (jax.ShapeDtypeStruct((1, 128, 2, d), dtype) for d in (32, 32))
    gates = jax.ShapeDtypeStruct((1, 128, 2), jnp.float32)
    state = jax.ShapeDtypeStruct((1, 2, 32, 32), jnp.float32)

    def loss(*inputs):
        return jnp.sum(kernel(delta)(*inputs)[0].astype(jnp.float32))

    with interpret_kernels(False):
        return triton_kernels(jax.grad(loss, argnums=range(6)), q, q, v, gates, gates, state)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("delta", [False, True])
def test_products_are_accurate_on_the_device(dtype, delta):
    """Interpretation does not show that a float32 product is one of TF32, unless told otherwise."""
    kernels = lowered(dtype, delta)
    assert {"linear_forward", "linear_backward"} <= kernels.keys()
    for text in kernels.values():
        dots = re.findall(r"tt\.dot .*", text)
        assert dots
        for dot in dots:
            assert ("inputPrecision = tf32x3" in dot) == (dtype == jnp.float32), dot
            assert dot.endswith("xf32>"), dot


@pytest.mark.slow
def test_features_are_padded_to_the_next_sizes():
    """K = 24 goes as 32 and V = 40 as 48; nothing of it is seen outside."""
    inputs = make(70, 1, 2, key_dim=24, value_dim=40)
    check(everything(kernel(True), *inputs), everything(chunked(True), *inputs), 2e-6)


def test_refuses_what_it_does_not_support():
    with pytest.raises(NotImplementedError, match="K is 128; float32 the delta rule takes K up to"):
        kernel(True)(*make(4, 1, 1, key_dim=128))
    inputs = [x.astype(jnp.float16) for x in make(4, 1, 1)]
    with pytest.raises(NotImplementedError, match="float16"):
        kernel(False)(*inputs)
