"""The chunked form against the dense oracle, and the properties that only it has."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.common.dispatch import interpret_kernels
from pallas_kernels.common.numerics import tanh_norm, unit_norm
from pallas_kernels.screening import chunked, screening
from pallas_kernels.screening.chunked import count_tiles, screening_chunked
from pallas_kernels.screening.reference import screening_reference
from tests.goldens import golden_names, golden_path
from tests.marks import slow_unless

WINDOWS = (1.0001, 1.5, 17.0, 64.0, 256.0, 1000.5, np.inf)
WIDTHS = (0.02, 0.5, 0.98)
NAMES = ("q", "k", "v", "window", "width")


def make_inputs(length, windows=WINDOWS, batch=2, key_dim=5, value_dim=9, dtype=np.float64, seed=0):
    """q, k, v, window, width and a cotangent; many keys lie close enough to be accepted."""
    rng = np.random.default_rng(seed)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    shape = (batch, length, len(windows))
    q = unit(rng.standard_normal((*shape, key_dim)))
    # Keys near the previous query, so that even a width of 0.02 accepts some of them.
    noise = rng.choice([0.02, 0.1, 3.0], shape)[..., None] * rng.standard_normal(q.shape)
    k = unit(np.roll(q, 1, axis=1) + noise)
    v = unit(rng.standard_normal((*shape, value_dim)))
    width = np.resize(WIDTHS, len(windows))
    arrays = [q, k, v, np.array(windows), width, rng.standard_normal(v.shape)]
    return [np.asarray(x, dtype) for x in arrays]


def make_segments(length, batch=2):
    """Documents of odd lengths with padding between and after them."""
    row = np.zeros(length, np.int32)
    for number, (start, stop) in enumerate([(0, 40), (40, 41), (45, 130), (130, 190)], start=1):
        row[start:stop] = number
    return np.stack([row, np.roll(row, 7)] * batch)[:batch]


@partial(jax.jit, static_argnums=0)
def value_and_gradients(op, segments, *args):
    *inputs, cotangent = args
    h, pullback = jax.vjp(lambda *x: op(*x, segments), *inputs)
    return h, *pullback(cotangent)


def dense_float64(segments, *args):
    with jax.enable_x64(True):
        args = [jnp.asarray(np.asarray(x, np.float64)) for x in args]
        return [np.asarray(x) for x in value_and_gradients(screening_reference, segments, *args)]


def assert_close(got, expected, tolerance, what=""):
    for name, a, b in zip(("h", *NAMES), got, expected, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all(), f"{what}{name}: not finite"
        if name in ("window", "width"):  # one number per head: each is judged by itself
            scale = np.abs(b) + 1e-2 * np.abs(b).max()
        else:
            scale = np.abs(b).max()
        error = np.max(np.abs(a - b) / (scale + 1e-30))
        assert error <= tolerance, f"{what}{name}: off by {error:.1e} of {np.max(scale):.1e}"


@pytest.mark.parametrize("length", slow_unless((1, 7, 257), [1, 7, 64, 65, 200, 257]))
def test_equals_dense_oracle(length):
    inputs = make_inputs(length, dtype=np.float32)
    for turn in range(3):
        inputs[4] = np.roll(inputs[4], 1)
        expected = dense_float64(None, *inputs)
        got = value_and_gradients(screening_chunked, None, *inputs)
        assert all(x.dtype == np.float32 for x in got)
        np.testing.assert_allclose(got[0], expected[0], rtol=0, atol=1e-5)
        # The gradient of a width is a sum of multiples of 1 - s; of a single token there is only
        # one, here 2e-4, of which the rounding of s is 3e-4.
        assert_close(got, expected, 1e-4 if length > 1 else 3e-4, what=f"turn {turn}, ")
        assert got[4][-1] == 0, "an infinite window has no gradient"


@pytest.mark.parametrize("with_segments", [False, True])
def test_float64_stays_float64(with_segments):
    segments = make_segments(200) if with_segments else None
    inputs = make_inputs(200)
    expected = dense_float64(segments, *inputs)
    with jax.enable_x64(True):
        got = value_and_gradients(screening_chunked, segments, *map(jnp.asarray, inputs))
    assert all(x.dtype == np.float64 for x in got)
    assert_close(got, expected, 1e-12)


@pytest.mark.parametrize("op", [screening_chunked, screening_reference])
def test_window_and_width_gradients_equal_finite_differences(op):
    windows = (1.7, 16.9, 33.2, 70.4, 150.3, 400.1)
    *inputs, cotangent = make_inputs(200, windows)
    heads = np.eye(len(windows))
    with jax.enable_x64(True):
        loss = jax.jit(lambda *x: jnp.sum(op(*x) * cotangent))
        gradients = jax.jit(jax.grad(loss, argnums=(3, 4)))(*inputs)
        for argument, gradient in zip((3, 4), gradients, strict=True):
            for head in heads:
                ends = []
                for sign in (1, -1):
                    moved = list(inputs)
                    moved[argument] = inputs[argument] + sign * 1e-6 * head
                    ends.append(loss(*moved))
                slope = (ends[0] - ends[1]) / 2e-6
                np.testing.assert_allclose(gradient @ head, slope, rtol=2e-5, atol=1e-7)


def test_windows_on_every_edge_between_tiles():
    """Windows around each change of tile shape and each further band, with every key accepted."""
    length = 400
    limits = list(chunked._plan(length)[0])
    limits += [n * s.keys - s.queries + 1 for s in chunked.TILE_SHAPES for n in (1, 2, 3)]
    reaches = sorted({r + step for r in limits for step in (-1, 0, 1) if 0 < r + step < length})
    windows = np.array([r + 1.0 for r in reaches])  # its last key is `r` tokens back
    with jax.enable_x64(True):
        ones, heads = np.ones((1, length, len(windows), 2)), np.ones(len(windows))
        v = np.random.default_rng(0).standard_normal((1, length, len(windows), 1))
        args = (ones / np.sqrt(2), ones / np.sqrt(2), v, windows, heads)
        h, expected = (jax.jit(op)(*args) for op in (screening_chunked, screening_reference))
        np.testing.assert_allclose(h, expected, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_windows_may_be_batched():
    inputs = make_inputs(150, windows=(2.0, 30.0, np.inf), dtype=np.float32)
    q, k, v, _, width, cotangent = map(jnp.asarray, inputs)
    windows = np.array([[2.0, 30.0, np.inf], [70.0, 3e38, 9.0]], np.float32)

    def results(op):
        def loss(window):
            return jnp.sum(op(q, k, v, window, width) * cotangent)

        return jax.jit(jax.vmap(jax.value_and_grad(loss)))(windows)

    for a, b in zip(results(screening_chunked), results(screening_reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_bfloat16_inputs_compute_in_float32():
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in make_inputs(65)]
    inputs[3:5] = [x.astype(jnp.float32) for x in inputs[3:5]]
    got = value_and_gradients(screening_chunked, None, *inputs)
    assert [x.dtype for x in got] == [inputs[2].dtype] + [x.dtype for x in inputs[:5]]
    expected = dense_float64(None, *inputs)
    for a, b in zip(got, expected, strict=True):
        a = np.asarray(a, np.float64)
        assert np.abs(a - b).max() <= 2.0**-8 * np.abs(b).max()  # rounding of the result alone


def test_no_information_from_the_future():
    *inputs, cotangent = make_inputs(200, dtype=np.float32)
    run = jax.jit(screening_chunked)
    h = run(*inputs)
    rng = np.random.default_rng(1)
    for t in (1, 63, 64, 131, 199):
        changed = [x.copy() for x in inputs]
        for x in changed[:3]:
            x[:, t:] = rng.standard_normal(x[:, t:].shape)
        np.testing.assert_array_equal(run(*changed)[:, :t], h[:, :t])
        only_past = np.where(np.arange(200)[:, None, None] < t, cotangent, 0)
        _, dq, dk, dv, _, _ = value_and_gradients(screening_chunked, None, *inputs, only_past)
        for gradient in (dq, dk, dv):
            assert not np.asarray(gradient)[:, t:].any()
            assert np.asarray(gradient)[:, :t].any()


def test_documents_are_isolated():
    length, segments = 200, make_segments(200)
    inputs = make_inputs(length, dtype=np.float32)
    h, *gradients = value_and_gradients(screening_chunked, segments, *inputs)
    padding = segments == 0
    for x in (h, *gradients[:3]):
        assert not np.asarray(x)[padding].any()

    third = segments == 3
    changed = [x.copy() for x in inputs]
    rng = np.random.default_rng(1)
    for x in (*changed[:3], changed[5]):
        x[~third] = rng.standard_normal(x[~third].shape)
    again = value_and_gradients(screening_chunked, segments, *changed)
    for x, y in zip((h, *gradients[:3]), again[:4], strict=True):
        np.testing.assert_array_equal(np.asarray(x)[third], np.asarray(y)[third])

    alone = [x[:1, 45:130] if x.ndim == 4 else x for x in inputs]
    expected = dense_float64(None, *alone)
    for x, y in zip((h, *gradients[:3]), expected[:4], strict=True):
        np.testing.assert_allclose(x[:1, 45:130], y, rtol=0, atol=1e-4 * np.abs(y).max())
    assert_close([h, *gradients], dense_float64(segments, *inputs), 1e-4)


@pytest.mark.parametrize(
    "implementation",
    slow_unless(("reference", "chunked"), ("reference", "chunked", "pallas_tpu", "pallas_gpu")),
)
def test_a_window_that_is_nan_gives_nan(implementation):
    """And the heads beside it are what they are without it."""
    inputs = make_inputs(700, (300.0, 300.0), key_dim=8, value_dim=32, dtype=np.float32)[:5]
    *rest, window, width = map(jnp.asarray, inputs)
    with interpret_kernels():
        healthy = screening(*rest, window, width, implementation=implementation)
        h = screening(*rest, window.at[1].set(jnp.nan), width, implementation=implementation)
    assert np.isnan(h[:, :, 1]).all()
    np.testing.assert_allclose(h[:, :, 0], healthy[:, :, 0], rtol=0, atol=1e-6)


def test_rows_without_keys_and_extreme_scalars_give_no_nan():
    inputs = make_inputs(65, windows=(1.0001, 3e38, np.inf), dtype=np.float32)
    inputs[1] = -inputs[0]  # so the first query, which sees only itself, accepts nothing
    inputs[4] = np.array([1e-6, 0.02, 1.0], np.float32)
    h, dq, *others = value_and_gradients(screening_chunked, None, *inputs)
    assert not np.asarray(h)[:, 0].any()
    assert not np.asarray(dq)[:, 0].any()
    assert all(np.isfinite(x).all() for x in (h, dq, *others))
    zero = [np.zeros_like(x) for x in inputs[:3]] + inputs[3:]
    for x in value_and_gradients(screening_chunked, None, *zero):
        assert np.isfinite(x).all()


def test_transformations():
    """vmap over batch, checkpoint, and a scan over layers whose windows differ."""
    *inputs, cotangent = make_inputs(65, windows=(1.5, 17.0, np.inf), dtype=np.float32)
    windows = jnp.array([[2.0, 30.0, np.inf], [70.0, 1.5, 9.0]])

    def one_sequence(q, k, v, window, width):
        return screening_chunked(q[None], k[None], v[None], window, width)[0]

    op = jax.vmap(one_sequence, in_axes=(0, 0, 0, None, None))

    def stacked(op, q, k, v, window, width):
        layer = jax.checkpoint(lambda v, window: (v + op(q, k, v, window, width), None))
        return jax.lax.scan(layer, v, windows + window)[0]

    both = [
        jax.jit(jax.vjp(partial(stacked, f), *inputs)[1])(cotangent)
        for f in (op, screening_reference)
    ]
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


def tiles_visited(monkeypatch, length, windows):
    """Counts, in the loop itself, the tiles of every head."""
    counts = []

    def counting(*args):
        jax.debug.callback(lambda: counts.append(1))
        return trim_root(*args)

    trim_root = chunked._trim_root
    with monkeypatch.context() as patch:
        patch.setattr(chunked, "_trim_root", counting)
        per_head = []
        ones, width = jnp.ones((1, length, 1, 2)), jnp.ones(1)

        @jax.jit
        def run(window):
            arrays = (ones,), (ones, ones), window, width
            return chunked._over_heads(chunked._head_forward, *arrays, None, None, None)

        for window in windows:
            counts.clear()
            jax.block_until_ready(run(jnp.array([window])))
            jax.effects_barrier()
            per_head.append(len(counts))
    return per_head


@pytest.mark.parametrize("length", [1, 65, 300, 1200])
def test_count_tiles_is_what_the_loop_does(monkeypatch, length):
    windows = [1.0001, 2.0, 33.0, 33.5, 257.0, 258.5, 1000.5, np.inf]
    expected = [count.tiles for count in count_tiles(length, windows)]
    assert tiles_visited(monkeypatch, length, windows) == expected


def test_tiles_grow_with_length_and_not_with_other_heads():
    windows = np.exp(np.linspace(0, np.log(256), 8)) + 1
    for length in (1024, 4096, 16384, 65536):
        once, twice = count_tiles(length, windows), count_tiles(2 * length, windows)
        for a, b, window in zip(once, twice, windows, strict=True):
            # Exactly, where one band is enough: the first block has no band before its own.
            bands = chunked._num_bands(a.shape, int(np.ceil(window)) - 1)
            assert b.tiles == 2 * a.tiles + bands - 1
        mixed = count_tiles(length, [np.inf, *windows[1:]])
        assert mixed[1:] == once[1:]
        assert mixed[0].pairs <= 1.25 * mixed[0].inside or length < 2048
        assert sum(a.pairs for a in once) <= 2.7 * sum(a.inside for a in once)


@pytest.mark.slow
def test_memory_is_linear():
    def bytes_for(length):
        args = [jax.ShapeDtypeStruct((1, length, 2, d), jnp.float32) for d in (16, 16, 64)]
        args += [jax.ShapeDtypeStruct((2,), jnp.float32)] * 2
        gradient = jax.grad(lambda *x: screening_chunked(*x).sum(), argnums=(0, 1, 2, 3, 4))
        return jax.jit(gradient).lower(*args).compile().memory_analysis().temp_size_in_bytes

    short, long = bytes_for(8192), bytes_for(16384)
    assert long <= 2.1 * short
    assert long < 0.05 * 4 * 16384**2


@pytest.mark.parametrize(
    "name", slow_unless(("multiscreen/unit_T33.npz",), golden_names("multiscreen", "unit_*.npz"))
)
def test_equals_recorded_unit(name):
    """The whole screening unit around the op, against recorded PyTorch values and gradients."""
    with np.load(golden_path(name)) as golden:
        data = {key: golden[key] for key in golden.files}
    threshold = json.loads(str(data["config"]))["w_th"]

    def rotate(x, window):
        gamma = jnp.where(window < threshold, (jnp.cos(np.pi * window / threshold) + 1) / 2, 0)
        angle = np.pi * jnp.arange(x.shape[1])[:, None] * gamma / window
        c, s = jnp.cos(angle), jnp.sin(angle)
        turned = [x[..., 0] * c - x[..., 1] * s, x[..., 0] * s + x[..., 1] * c]
        return jnp.concatenate([jnp.stack(turned, -1), x[..., 2:]], -1)

    def unit(q, k, v, s_w, s_r):
        window = jnp.exp(s_w) + 1
        q, k = rotate(unit_norm(q), window), rotate(unit_norm(k), window)
        h = screening_chunked(q, k, unit_norm(v), window, jax.nn.sigmoid(s_r))
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
