"""The GPU kernels, interpreted, against the dense oracle; and the products they lower to."""

import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax.layers.positions import mipe, mipe_turns
from pallas_kernels.common.dispatch import interpret_kernels
from pallas_kernels.common.numerics import tanh_norm, unit_norm
from pallas_kernels.screening import pallas_gpu
from pallas_kernels.screening.chunked import screening_chunked
from pallas_kernels.screening.extent import Extent
from pallas_kernels.screening.gpu_block_sizes import Block, block_sizes
from pallas_kernels.screening.pallas_gpu import (
    count_visited_pairs,
    screening_pallas_gpu,
    visited_tiles,
)
from pallas_kernels.screening.reference import screening_reference
from tests.goldens import golden_names, golden_path
from tests.jax_internals import triton_kernels
from tests.marks import slow_unless
from tests.screening.test_chunked import (
    assert_close,
    dense_float64,
    make_inputs,
    make_segments,
    value_and_gradients,
)

WINDOWS = (1.5, 17.0, 256.0, 1000.5, np.inf)
UNIT = ("multiscreen/unit_T33.npz",)  # of the others the chunked form, which kernels are held to
UNITS = golden_names("multiscreen", "unit_*.npz")


@pytest.fixture(autouse=True)
def _interpreted():
    with interpret_kernels():
        yield


def make(length, windows=WINDOWS, batch=1, key_dim=16, value_dim=32, seed=0):
    return make_inputs(length, windows, batch, key_dim, value_dim, np.float32, seed)


def check(segments, inputs, what=""):
    expected = dense_float64(segments, *inputs)
    got = value_and_gradients(screening_pallas_gpu, segments, *inputs)
    np.testing.assert_allclose(got[0], expected[0], rtol=0, atol=1e-5)
    assert_close(got, expected, 1e-4, what)
    return got


@pytest.mark.parametrize("length", slow_unless((1, 257), (1, 7, 65, 200, 257), exhaustive=(7, 65)))
def test_equals_dense_oracle(length):
    inputs = make(length)
    for turn in range(3):  # every window with every width
        inputs[4] = np.roll(inputs[4], 1)
        got = check(None, inputs, f"turn {turn}, ")
        assert got[4][-1] == 0, "an infinite window has no gradient"


@pytest.mark.slow
@pytest.mark.parametrize(("key_dim", "value_dim"), [(8, 32), (32, 64), (64, 32)])
def test_other_sizes(key_dim, value_dim):
    segments = make_segments(130)[:1]
    check(segments, make(130, (1.5, 17.0, np.inf), key_dim=key_dim, value_dim=value_dim))


@pytest.mark.parametrize("length", slow_unless((200,), (7, 200, 257), exhaustive=(7,)))
def test_packed_documents(length):
    check(make_segments(length), make(length, batch=2))


@pytest.mark.slow
@pytest.mark.parametrize(("key_dim", "value_dim", "length"), [(16, 64, 200), (128, 128, 65)])
def test_bfloat16(key_dim, value_dim, length):
    """No worse than the chunked form, which computes in float32 and rounds once."""
    inputs = make(length, key_dim=key_dim, value_dim=value_dim)
    inputs = [jnp.asarray(x, jnp.bfloat16) if x.ndim > 1 else x for x in inputs]
    expected = dense_float64(None, *inputs)
    got = value_and_gradients(screening_pallas_gpu, None, *inputs)
    chunked = value_and_gradients(screening_chunked, None, *inputs)

    def error(x, exact):
        return np.sqrt(np.mean((np.asarray(x, np.float64) - exact) ** 2, where=np.isfinite(exact)))

    assert [x.dtype for x in got] == [inputs[2].dtype] + [x.dtype for x in inputs[:5]]
    for x, y, exact in zip(got[:4], chunked[:4], expected[:4], strict=True):
        assert error(x, exact) <= 1.5 * error(y, exact)
    for x, exact in zip(got[4:], expected[4:], strict=True):  # never rounded to bfloat16
        np.testing.assert_allclose(x, exact, rtol=1e-4, atol=1e-4 * np.abs(exact).max())


@pytest.mark.slow
def test_windows_that_end_at_the_edges_of_tiles():
    edges = [n + step for n in (32, 64, 96) for step in (-0.5, 0, 0.5, 1, 1.5)]
    check(None, make(130, edges))


@pytest.mark.slow
def test_window_and_width_gradients_equal_finite_differences():
    windows = (1.7, 31.6, 32.4, 64.3, 97.5, 400.1)
    *inputs, cotangent = make(130, windows)
    _, *gradients = value_and_gradients(screening_pallas_gpu, None, *inputs, cotangent)
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(x, np.float64)) for x in inputs]
        loss = jax.jit(lambda *x: jnp.sum(screening_reference(*x) * cotangent, axis=(0, 1, 3)))
        for argument in (3, 4):
            ends = []
            for sign in (1, -1):  # heads do not interact, so that all can move at once
                moved = list(exact)
                moved[argument] = exact[argument] + sign * 1e-6
                ends.append(loss(*moved))
            slope = np.asarray(ends[0] - ends[1]) / 2e-6
            scale = 1e-2 * np.abs(slope).max()
            assert np.all(np.abs(gradients[argument] - slope) <= 1e-4 * (np.abs(slope) + scale))


def test_mask_is_accurate_at_any_distance():
    """Every key accepted with relevance m: rows far from the start, and windows of all sizes."""
    windows = np.array([1.25, 2.5, 100.3, 9999.9, 131072.0, np.inf])
    distance = np.array([0, 1, 2, 100, 131071, 2**30])
    for window in windows:
        head = jax.tree.map(
            lambda x: x[0],
            pallas_gpu._heads(jnp.array([window]), jnp.ones(1), None, Extent(2**17, 2**17)),
        )
        turns = distance * (0.5 / np.float64(np.float32(window)))
        inside = distance < max(2 * window, 300)
        for got, expected in zip(
            pallas_gpu._cos_sin(jnp.asarray(distance, jnp.int32), head),
            (np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)),
            strict=True,
        ):
            # The frequency may be off by its rounding, which matters little within a window.
            limit = 1e-6 + 4e-7 * 2 * np.pi * turns
            assert np.all(np.abs(got - expected)[inside] <= limit[inside])


def test_no_information_from_the_future():
    *inputs, cotangent = make(130, (1.5, 17.0, np.inf))
    h = value_and_gradients(screening_pallas_gpu, None, *inputs, cotangent)[0]
    rng = np.random.default_rng(1)
    for t in (1, 31, 32, 100, 129):
        changed = [x.copy() for x in inputs]
        for x in changed[:3]:
            x[:, t:] = rng.standard_normal(x[:, t:].shape)
        only_past = np.where(np.arange(130)[:, None, None] < t, cotangent, 0)
        again = value_and_gradients(screening_pallas_gpu, None, *changed, only_past)
        np.testing.assert_array_equal(again[0][:, :t], h[:, :t])
        for gradient in again[1:4]:
            assert not np.asarray(gradient)[:, t:].any()
            assert np.asarray(gradient)[:, :t].any()


@pytest.mark.slow
def test_documents_are_isolated():
    segments = make_segments(200)
    inputs = make(200, (17.0, np.inf), batch=2)
    first = value_and_gradients(screening_pallas_gpu, segments, *inputs)[:4]
    for x in first:
        assert not np.asarray(x)[segments == 0].any()
    third = segments == 3
    changed = [x.copy() for x in inputs]
    rng = np.random.default_rng(1)
    for x in (*changed[:3], changed[5]):
        x[~third] = rng.standard_normal(x[~third].shape)
    again = value_and_gradients(screening_pallas_gpu, segments, *changed)[:4]
    for x, y in zip(first, again, strict=True):
        np.testing.assert_array_equal(np.asarray(x)[third], np.asarray(y)[third])


def test_rejected_keys_and_extreme_scalars():
    inputs = make(65, (1.0001, 3e38, np.inf))
    inputs[1] = -inputs[0]  # so the first query, which sees only itself, accepts nothing
    inputs[4] = np.array([1e-6, 0.02, 1.0], np.float32)
    h, dq, *others = value_and_gradients(screening_pallas_gpu, None, *inputs)
    assert not np.asarray(h)[:, 0].any()
    assert not np.asarray(dq)[:, 0].any()
    assert all(np.isfinite(x).all() for x in (h, dq, *others))
    inputs[1][:] = 0
    inputs[4][:] = 0.5
    for x in value_and_gradients(screening_pallas_gpu, None, *inputs):
        assert not np.asarray(x).any()


def test_nan_is_not_taken_for_a_rejected_key():
    inputs = make(33, (17.0,))
    inputs[1][0, 3] = np.nan
    h = value_and_gradients(screening_pallas_gpu, None, *inputs)[0]
    assert np.isnan(h[0, 3:17]).all()


@pytest.mark.slow
def test_transformations():
    """vmap over batch and windows, checkpoint, and a scan over layers whose windows differ."""
    *inputs, cotangent = make(33, (1.5, np.inf), batch=2)
    windows = jnp.array([[2.0, 30.0], [70.0, 1.5]])

    def stacked(op, q, k, v, window, width):
        def one_sequence(q, k, v, window):
            return op(q[None], k[None], v[None], window, width)[0]

        def layer(v, window):
            return v + jax.vmap(one_sequence)(q, k, v, jnp.stack([window, 2 * window])), None

        return jax.lax.scan(jax.checkpoint(layer), v, windows + window)[0]

    def gradients(op):
        return jax.jit(jax.vjp(partial(stacked, op), *inputs)[1])(cotangent)

    both = gradients(screening_pallas_gpu), gradients(screening_reference)
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


# -- which tiles are visited -----------------------------------------------------------------------

BLOCK = block_sizes(90, jnp.bfloat16, 16, 64).forward


@pytest.mark.parametrize("block", [Block(64, 32, 4, 2), Block(16, 64, 4, 2), Block(32, 32, 4, 2)])
@pytest.mark.parametrize("length", [1, 65, 300])
def test_visited_tiles_are_those_with_a_key_in_reach(length, block):
    query, key = np.arange(length)[:, None], np.arange(length)[None, :]
    for window in (1.0001, 2.0, 32.5, 33.0, 64.0, 65.0, 150.0, np.inf):
        needed = np.argwhere((query - key >= 0) & (query - key < window))
        tiles = {(i // block.queries, j // block.keys) for i, j in needed}
        for over in ("queries", "keys"):
            visited = visited_tiles(length, window, block, over)
            assert len(visited) == len(set(visited))
            counted = count_visited_pairs(length, jnp.array([window, window]), block, over)
            assert counted == 2 * len(visited) * block.queries * block.keys
            assert set(visited) == tiles


def test_tiles_at_initial_windows():
    length, heads = 8192, 16
    visited = needed = 0
    for window in np.exp(np.linspace(0, np.log(256), heads)) + 1:
        visited += len(visited_tiles(length, window, BLOCK))
        # By counting: the keys in reach of a block, in blocks.
        first = np.maximum(np.arange(0, length, BLOCK.queries) - int(np.ceil(window)) + 1, 0)
        last = np.arange(0, length, BLOCK.queries) + BLOCK.queries - 1
        needed += np.sum(last // BLOCK.keys - first // BLOCK.keys + 1)
    assert visited <= 1.5 * needed


@pytest.mark.parametrize("window", [1.0001, 33.5, 64.0, 150.0, np.inf])
def test_kernel_visits_those_tiles(monkeypatch, window):
    """With every pair of a visited tile counted as accepted and masked by one, each query reads the
    sum of the values of all keys its program visits, and each key's value gets a cotangent from
    each query: the number of tiles times their size."""
    length = 256
    block = block_sizes(None, jnp.float32, 16, 32).forward
    monkeypatch.setattr(pallas_gpu, "_trim_root", lambda s, *_: jnp.ones_like(s))
    monkeypatch.setattr(
        pallas_gpu,
        "_cos_sin",
        lambda d, _: (jnp.ones_like(d, jnp.float32), jnp.zeros_like(d, jnp.float32)),
    )
    ones = [jnp.ones((1, length, 1, d)) for d in (16, 16, 32)]
    scalars = jnp.array([window], jnp.float32), jnp.array([0.5], jnp.float32)
    h, pullback = jax.vjp(lambda v: screening_pallas_gpu(*ones[:2], v, *scalars), ones[2])
    (dv,) = pullback(h * 0 + 1)
    for counted, rows, columns, over, side in (
        (h, block.queries, block.keys, "queries", 0),
        (dv, block.keys, block.queries, "keys", 1),
    ):
        tiles = np.array(visited_tiles(length, window, block, over))[:, side]
        expected = np.bincount(tiles) * columns
        np.testing.assert_array_equal(np.asarray(counted)[0, ::rows, 0, 0], expected)


# -- what it lowers to, and what it refuses --------------------------------------------------------


def lowered(dtype, segments=False):
    """Triton's intermediate language of the three kernels."""
    q, v = (jax.ShapeDtypeStruct((1, 256, 2, d), dtype) for d in (16, 64))
    per_head = jax.ShapeDtypeStruct((2,), jnp.float32)
    operands = [q, q, v, per_head, per_head]
    if segments:
        operands.append(jax.ShapeDtypeStruct((1, 256), jnp.int32))

    def loss(*args):
        return jnp.sum(screening_pallas_gpu(*args).astype(jnp.float32))

    with interpret_kernels(False):
        return triton_kernels(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4)), *operands)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_are_accurate_on_the_device(dtype):
    """Interpretation does not show that a float32 product is one of TF32, unless told otherwise."""
    kernels = lowered(dtype)
    assert len(kernels) == 3
    for name, text in kernels.items():
        dots = re.findall(r"tt\.dot .*", text)
        assert len(dots) == 2 * {"forward": 2, "queries": 3, "keys": 4}[name.split("_")[-1]]
        for dot in dots:
            assert ("inputPrecision = tf32x3" in dot) == (dtype == jnp.float32), dot
            assert dot.endswith("xf32>"), dot


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_nan_survives_on_the_device(dtype):
    """Nor does interpretation show that Triton's maximum of NaN and zero is zero."""
    for name, text in lowered(dtype, segments=True).items():
        assert not re.findall(r"m(?:ax|in)\w*f ", text), name


def test_documents_cost_only_those_who_have_them():
    plain, packed = lowered(jnp.bfloat16), lowered(jnp.bfloat16, segments=True)
    for name, text in plain.items():
        assert text.count("tt.load") < packed[name].count("tt.load")
        assert "i32>, tensor" not in text or text.count("cmpi eq") < packed[name].count("cmpi eq")


def test_refuses_what_it_does_not_support():
    def call(key_dim=16, value_dim=64, dtype=jnp.float32, v_dtype=None):
        q, v = (
            jnp.zeros((1, 4, 1, key_dim), dtype),
            jnp.zeros((1, 4, 1, value_dim), v_dtype or dtype),
        )
        return screening_pallas_gpu(q, q, v, jnp.ones(1), jnp.ones(1))

    for arguments, words in (
        ({"key_dim": 24}, "K is 24.*8, 16, 32, 64, 128"),
        ({"value_dim": 16}, "V is 16.*32, 64, 128"),
        ({"dtype": jnp.float16}, "float16.*bfloat16, float32"),
        ({"v_dtype": jnp.bfloat16}, "float32.*bfloat16"),
    ):
        with pytest.raises(NotImplementedError, match=words):
            call(**arguments)
    with jax.enable_x64(True), pytest.raises(NotImplementedError, match="float64"):
        call(dtype=jnp.float64)
    with pytest.raises(NotImplementedError, match=r"75.*80"):
        block_sizes(75, jnp.bfloat16, 16, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_unless(UNIT, UNITS, exhaustive=UNITS))
def test_equals_recorded_unit(name):
    """The whole screening unit around the op, against recorded PyTorch values and gradients."""
    with np.load(golden_path(name)) as golden:
        data = {key: golden[key] for key in golden.files}
    threshold = json.loads(str(data["config"]))["w_th"]
    positions = jnp.arange(data["in/q"].shape[1])[None]

    def unit(q, k, v, s_w, s_r):
        window = jnp.exp(s_w) + 1
        turns = mipe_turns(positions, window, threshold)
        q, k = mipe(unit_norm(q), turns), mipe(unit_norm(k), turns)
        h = screening_pallas_gpu(q, k, unit_norm(v), window, jax.nn.sigmoid(s_r))
        return tanh_norm(h), h

    @jax.jit
    def run(cotangent, *inputs):
        u, pullback, h = jax.vjp(unit, *inputs, has_aux=True)
        return u, jnp.moveaxis(h, 2, 1), pullback(cotangent)

    names = ("q", "k", "v", "s_w", "s_r")
    u, h, gradients = run(data["in/cotangent"], *(data[f"in/{n}"] for n in names))
    np.testing.assert_allclose(u, data["out/u"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(h, data["out/pre_tanhnorm"], rtol=0, atol=1e-5)
    for n, gradient in zip(names, gradients, strict=True):
        expected = data[f"grad/{n}"]
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
