"""The TPU kernels, interpreted on a CPU, against the dense oracle."""

import itertools
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from multiscreen_jax.layers.positions import mipe, mipe_turns
from pallas_kernels.common.dispatch import interpret_kernels
from pallas_kernels.common.numerics import tanh_norm, unit_norm
from pallas_kernels.screening import block_sizes, block_tables, pallas_tpu, tpu_tiles
from pallas_kernels.screening.block_sizes import TpuBlock, TpuBlocks
from pallas_kernels.screening.chunked import screening_chunked
from pallas_kernels.screening.pallas_tpu import screening_pallas_tpu
from tests.goldens import golden_names, golden_path
from tests.jax_internals import races_found
from tests.marks import slow_unless
from tests.screening.test_chunked import (
    NAMES,
    assert_close,
    dense_float64,
    make_inputs,
    make_segments,
    value_and_gradients,
)

WINDOWS = (1.5, 17.0, 256.0, 1000.5, np.inf)
SMALL = TpuBlocks(
    TpuBlock(128, 128, 64), TpuBlock(128, 128, 64, staged=True), TpuBlock(128, 128, 64, rolled=True)
)
UNEVEN = TpuBlocks(
    TpuBlock(256, 128, 128, rolled=True),
    TpuBlock(128, 256, 128),
    TpuBlock(256, 256, 64, 128, 256, staged=True),
)


def kernels(blocks, exact=True):
    """The op with these blocks, as `value_and_gradients` takes it."""

    def op(q, k, v, window, width, segments=None):
        return pallas_tpu._screening(q, k, v, window, width, segments, None, exact, blocks)

    return op


def inputs_of(length, windows=WINDOWS, key_dim=8, value_dim=32, batch=1, **kwargs):
    return make_inputs(length, windows, batch, key_dim, value_dim, dtype=np.float32, **kwargs)


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param(SMALL, id="small"),
        pytest.param(UNEVEN, id="uneven", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("length", slow_unless((257,), (1, 65, 257), exhaustive=(1, 65)))
def test_equals_dense_oracle(length, blocks):
    inputs = inputs_of(length)
    expected = dense_float64(None, *inputs)
    with interpret_kernels():
        got = value_and_gradients(kernels(blocks), None, *inputs)
    np.testing.assert_allclose(got[0], expected[0], rtol=0, atol=1e-5)
    assert_close(got, expected, 1e-4)
    assert got[4][-1] == 0, "an infinite window has no gradient"


@pytest.mark.parametrize("turn", slow_unless((), (1, 2), exhaustive=(2,)))
@pytest.mark.parametrize("length", slow_unless((), (7, 200, 600), exhaustive=(7, 600)))
def test_equals_dense_oracle_with_other_widths(length, turn):
    inputs = inputs_of(length)
    inputs[4] = np.roll(inputs[4], turn)
    with interpret_kernels():
        got = value_and_gradients(kernels(SMALL), None, *inputs)
    # A window's gradient is a sum that nearly cancels, and CPUs add in orders of their own.
    assert_close(got, dense_float64(None, *inputs), 2e-4)


@pytest.mark.parametrize(
    ("key_dim", "value_dim"),
    slow_unless(
        (),
        ((16, 64), (32, 32), (64, 128), (128, 64), (128, 128)),
        exhaustive=((16, 64), (32, 32), (64, 128), (128, 64)),
    ),
)
def test_other_dims(key_dim, value_dim):
    inputs = inputs_of(150, (1.5, 70.0, np.inf), key_dim, value_dim)
    with interpret_kernels():
        got = value_and_gradients(screening_pallas_tpu, None, *inputs)
    assert_close(got, dense_float64(None, *inputs), 1e-4)


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("with_segments", "key_dim"),
    slow_unless(
        [(True, 16)],
        [(False, 16), (True, 16), (False, 128)],
        exhaustive=[(False, 16), (False, 128)],
    ),
)
def test_bfloat16_is_as_good_as_the_chunked_form(with_segments, key_dim):
    """Errors against the oracle on the inputs before they are rounded to bf16."""
    segments = make_segments(257, 1) if with_segments else None
    inputs = inputs_of(257, key_dim=key_dim, value_dim=64)
    expected = dense_float64(segments, *inputs)
    rounded = [jnp.asarray(x, jnp.bfloat16) if x.ndim == 4 else jnp.asarray(x) for x in inputs]
    chunked = value_and_gradients(screening_chunked, segments, *rounded)
    with interpret_kernels():
        got = value_and_gradients(kernels(SMALL, exact=False), segments, *rounded)
    for name, a, b, exact in zip(("h", *NAMES), got, chunked, expected, strict=True):
        assert a.dtype == b.dtype, name
        errors = [rms(np.asarray(x, np.float64) - exact) for x in (a, b)]
        limit = 1.5 * errors[1]
        if name in ("window", "width"):
            # Sums of terms of both signs, each rounded to 8 bits; the chunked form rounds none.
            limit += 2.0**-8 * rms(exact)
        assert errors[0] <= limit, f"{name}: {errors}"


@pytest.mark.slow
def test_packed_documents():
    length, segments = 200, make_segments(200, 2)
    inputs = inputs_of(length, (17.0, 256.0, np.inf), batch=2)
    with interpret_kernels():
        run = partial(value_and_gradients, kernels(SMALL), segments)
        h, *gradients = run(*inputs)
        third = segments == 3
        changed = [x.copy() for x in inputs]
        rng = np.random.default_rng(1)
        for x in (*changed[:3], changed[5]):
            x[~third] = rng.standard_normal(x[~third].shape)
        again = run(*changed)
    assert_close([h, *gradients], dense_float64(segments, *inputs), 1e-4)
    for x, y in zip((h, *gradients[:3]), again[:4], strict=True):
        assert not np.asarray(x)[segments == 0].any()
        np.testing.assert_array_equal(np.asarray(x)[third], np.asarray(y)[third])


@pytest.mark.slow
def test_packed_documents_with_the_default_blocks():
    inputs, segments = inputs_of(150, (17.0, np.inf)), make_segments(150, 1)
    with interpret_kernels():
        got = value_and_gradients(screening_pallas_tpu, segments, *map(jnp.asarray, inputs))
    assert_close(got, dense_float64(segments, *inputs), 1e-4)


@pytest.mark.slow
def test_no_information_from_the_future():
    *inputs, cotangent = inputs_of(200, (17.0, np.inf))
    with interpret_kernels():
        op = kernels(SMALL)
        h = jax.jit(op)(*inputs)
        for t in (63, 128, 131):
            changed = [x.copy() for x in inputs]
            for x in changed[:3]:
                x[:, t:] = np.random.default_rng(t).standard_normal(x[:, t:].shape)
            np.testing.assert_array_equal(jax.jit(op)(*changed)[:, :t], h[:, :t])
        past = np.where(np.arange(200)[:, None, None] < 131, cotangent, 0)
        for gradient in value_and_gradients(op, None, *inputs, past)[1:4]:
            assert not np.asarray(gradient)[:, 131:].any()
            assert np.asarray(gradient)[:, :131].any()


@pytest.mark.slow
def test_window_and_width_gradients_equal_finite_differences():
    windows = (1.7, 120.6, 127.5, 128.5, 130.2, 256.3)  # around the edges of tiles
    *inputs, cotangent = inputs_of(300, windows)
    with interpret_kernels():
        got = value_and_gradients(kernels(SMALL), None, *inputs, cotangent)[4:]

    def loss(window, width):
        x = [*inputs[:3], window, width, cotangent]
        h = dense_float64(None, *x)[0]
        return np.sum(h * np.asarray(cotangent, np.float64), axis=(0, 1, 3))

    scalars = [np.asarray(x, np.float64) for x in inputs[3:]]
    for argument in (0, 1):
        ends = []
        for sign in (1, -1):
            moved = list(scalars)
            moved[argument] = moved[argument] + sign * 1e-6
            ends.append(loss(*moved))
        slope = (ends[0] - ends[1]) / 2e-6
        limit = 1e-4 * np.abs(slope) + 1e-5 * np.abs(slope).max()
        assert (np.abs(got[argument] - slope) <= limit).all(), (got[argument], slope)


@pytest.mark.slow
def test_extreme_scalars_and_empty_rows_give_no_nan():
    inputs = inputs_of(65, (1.0001, 3e38, np.inf))
    inputs[1] = -inputs[0]  # so the first query, which sees only itself, accepts nothing
    inputs[4] = np.array([1e-6, 0.02, 1.0], np.float32)
    with interpret_kernels():
        h, dq, *others = value_and_gradients(kernels(SMALL), None, *inputs)
        assert not np.asarray(h)[:, 0].any()
        assert not np.asarray(dq)[:, 0].any()
        zero = [np.zeros_like(x) for x in inputs[:3]] + inputs[3:]
        zeros = value_and_gradients(kernels(SMALL), None, *zero)
    assert all(np.isfinite(x).all() for x in (h, dq, *others, *zeros))


@pytest.mark.slow
def test_transformations():
    """vmap over arrays and over windows, checkpoint, and a scan over layers."""
    *inputs, cotangent = map(jnp.asarray, inputs_of(65, (1.5, 17.0, np.inf), batch=2))
    windows = jnp.array([[2.0, 30.0, np.inf], [70.0, 1.5, 9.0]])

    def stacked(op, q, k, v, window, width):
        def one(q, k, v, window, width):
            return op(q[None], k[None], v[None], window, width)[0]

        every = jax.vmap(one, in_axes=(0, 0, 0, None, None))
        layer = jax.checkpoint(lambda v, window: (v + every(q, k, v, window, width), None))
        return jax.lax.scan(layer, v, windows + window)[0]

    def by_window(op):
        return jax.vmap(lambda w: jnp.sum(op(*inputs[:3], w, inputs[4]) * cotangent))(windows)

    results = []
    for op in (kernels(SMALL), screening_chunked):
        with interpret_kernels():
            pullback = jax.jit(jax.vjp(partial(stacked, op), *inputs)[1])
            results.append([*pullback(cotangent), jax.jit(partial(by_window, op))()])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


UNIT = ("multiscreen/unit_T33.npz",)  # of the others the chunked form, which kernels are held to
UNITS = golden_names("multiscreen", "unit_*.npz")


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_unless(UNIT, UNITS, exhaustive=UNITS))
def test_equals_recorded_unit(name):
    """The whole screening unit around the kernels, against recorded PyTorch runs."""
    with np.load(golden_path(name)) as golden:
        data = {key: golden[key] for key in golden.files}
    threshold = json.loads(str(data["config"]))["w_th"]
    names = ("q", "k", "v", "s_w", "s_r")

    def unit(q, k, v, s_w, s_r):
        window = jnp.exp(s_w) + 1
        positions = jnp.broadcast_to(jnp.arange(q.shape[1]), q.shape[:2])
        turns = mipe_turns(positions, window, threshold)
        q, k = (mipe(unit_norm(x), turns) for x in (q, k))
        h = kernels(SMALL)(q, k, unit_norm(v), window, jax.nn.sigmoid(s_r))
        return tanh_norm(h), h

    @jax.jit
    def run(cotangent, *inputs):
        u, pullback, h = jax.vjp(unit, *inputs, has_aux=True)
        return u, jnp.moveaxis(h, 2, 1), pullback(cotangent)

    with interpret_kernels():
        u, h, gradients = run(data["in/cotangent"], *(data[f"in/{n}"] for n in names))
    np.testing.assert_allclose(u, data["out/u"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(h, data["out/pre_tanhnorm"], rtol=0, atol=1e-5)
    for n, gradient in zip(names, gradients, strict=True):
        expected = data[f"grad/{n}"]
        limit = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=limit, err_msg=n)


@pytest.mark.slow
def test_no_races():
    inputs = inputs_of(200, (1.5, 150.0))
    expected = dense_float64(None, *inputs)
    try:
        with interpret_kernels(pltpu.InterpretParams(detect_races=True)):
            got = value_and_gradients(kernels(SMALL), None, *inputs)
            jax.block_until_ready(got)
        assert not races_found()
        assert_close(got, expected, 1e-4)
    finally:
        pltpu.reset_tpu_interpret_mode_state()


def test_one_bf16_pass_needs_the_split():
    """On a TPU a bf16 product rounds its factors: g keeps 8 bits, 16 of two parts, 24 of three."""
    head = tpu_tiles.make_head(0.25 / 200, 0.0, 1 / 0.5)
    q, k = (jnp.asarray(x[0, :, 0].T, jnp.bfloat16) for x in inputs_of(128, (200.0,), 16)[:2])
    plan = tpu_tiles.Plan(1, 1, 16, 32, 128, 128, SMALL.forward, True, exact=True, packed=False)

    def factor(x, is_query):
        pieces = []
        turned = tpu_tiles.turn(0, head)
        tpu_tiles.for_factor(
            plan, lambda _: x, is_query, turned, head, lambda _, rows: pieces.append(rows)
        )
        return jnp.concatenate(pieces)

    factors = factor(q, True), factor(k, False)
    q, k = (np.asarray(x, np.float64) for x in (q, k))
    distance = np.arange(128)[:, None] - np.arange(128)
    expected = (1 - (1 - q.T @ k) / 0.5) * np.cos(np.pi * distance / 400)
    errors = []
    for parts in (1, 2, 3):
        left, right = (
            tpu_tiles.operand(x, parts, left=side).astype(jnp.bfloat16)
            for x, side in zip(factors, (True, False), strict=True)
        )
        errors.append(np.abs(tpu_tiles.dot(left.T, right, (1, 0)) - expected).max())
    assert errors[0] > 1e-3 > 20 * errors[1]
    assert errors[1] > 5 * errors[2]
    assert errors[2] < 4e-6  # float32 itself


def tiles_needed(length, window, block):
    """How many tiles hold a pair within the window, one by one."""
    query, key = (np.arange(-(-length // size)) * size for size in (block.rows, block.columns))
    farthest = query[:, None] + block.rows - 1 - key
    nearest = query[:, None] - (key + block.columns - 1)
    return int(((farthest >= 0) & (nearest <= np.ceil(window) - 1)).sum())


@pytest.mark.slow
def test_count_tiles_is_what_the_kernel_does(monkeypatch):
    length, visits = 600, []
    for_parts = tpu_tiles.for_parts

    def counting(*args):
        jax.debug.callback(lambda: visits.append(1))
        for_parts(*args)

    monkeypatch.setattr(tpu_tiles, "for_parts", counting)
    monkeypatch.setattr(block_sizes, "tpu_blocks", lambda *_: SMALL)
    ones = [jnp.ones((1, length, 1, d)) for d in (8, 8, 32)]
    for window in (1.5, 129.0, 130.5, 400.0, np.inf):
        visits.clear()
        with interpret_kernels():
            op = jax.jit(kernels(SMALL))
            jax.block_until_ready(op(*ones, jnp.array([window]), jnp.ones(1)))
            jax.effects_barrier()
        (count,) = block_sizes.count_tiles(length, [window])
        assert len(visits) == count.tiles == tiles_needed(length, window, SMALL.forward)


def test_visits_only_what_initial_windows_need():
    windows = np.exp(np.linspace(0, np.log(256), 16)) + 1
    counts = block_sizes.count_tiles(8192, windows)
    needed = [tiles_needed(8192, w, c.block) for w, c in zip(windows, counts, strict=True)]
    assert sum(c.tiles for c in counts) <= 1.5 * sum(needed)


@pytest.mark.parametrize("rows_are_queries", [True, False])
@pytest.mark.parametrize("reach", [0, 1, 127, 128, 300, 2000])
def test_parts_on_the_edge_are_those_with_a_pair_in_reach(reach, rows_are_queries):
    block = TpuBlock(512, 512, 128, part_rows=128, part_columns=256)
    plan = tpu_tiles.Plan(1, 1, 8, 32, 4096, 4096, block, rows_are_queries, False, False)
    for distance in range(-512, 2560, 128):
        tile = tpu_tiles.Tile(distance, reach, None, None, None)
        rows, columns = np.arange(block.rows)[:, None], np.arange(block.columns)
        steps = rows - columns if rows_are_queries else columns - rows
        in_reach = (distance + steps >= 0) & (distance + steps <= reach)
        parts = in_reach.reshape(4, 128, 2, 256).any((1, 3))
        for n, needed in enumerate(parts):
            start, stop = (int(x) for x in tpu_tiles.edge_columns(tile, 128 * n, plan))
            np.testing.assert_array_equal(np.flatnonzero(needed), np.arange(start, stop))


@pytest.mark.parametrize(
    ("key_dim", "value_dim", "dtype", "message"),
    [
        (5, 64, np.float32, "got 5"),
        (16, 48, np.float32, "got 48"),
        (16, 64, np.float16, "got float16"),
    ],
)
def test_says_what_is_not_supported(key_dim, value_dim, dtype, message):
    *inputs, _ = make_inputs(8, (2.0,), 1, key_dim, value_dim, dtype=dtype)
    with pytest.raises(NotImplementedError, match=message):
        screening_pallas_tpu(*map(jnp.asarray, inputs))


def test_highest_precision_on_bfloat16_inputs():
    inputs = [jnp.asarray(x) for x in inputs_of(65, (17.0, np.inf))]
    inputs[:3] = [x.astype(jnp.bfloat16) for x in inputs[:3]]
    expected = dense_float64(None, *inputs)[0]
    with interpret_kernels():
        h = jax.jit(partial(screening_pallas_tpu, precision="highest"))(*inputs[:5])
    np.testing.assert_allclose(h.astype(np.float32), expected, rtol=2.0**-8, atol=1e-5)


def test_says_what_has_no_block_sizes(monkeypatch):
    monkeypatch.setattr(block_sizes, "tpu_chip", lambda: "v5e")
    monkeypatch.delitem(block_tables.table("v5e"), "float32 K=8 V=32")
    *inputs, _ = inputs_of(8)
    with pytest.raises(NotImplementedError, match="K=8 V=32 on v5e: no block sizes are known"):
        screening_pallas_tpu(*map(jnp.asarray, inputs))


@pytest.mark.parametrize("chip", ["v4", "v5e", "v5p", "v6e", "7x"])
def test_blocks_of_the_tables_fit_the_memory(chip, monkeypatch):
    monkeypatch.setattr(block_sizes, "tpu_chip", lambda: chip)
    dims = itertools.product(pallas_tpu.KEY_DIMS, pallas_tpu.VALUE_DIMS, (True, False))
    held = [
        x
        for x in dims
        if block_tables.configuration("float32" if x[2] else "bfloat16", *x[:2])
        in block_tables.table(chip)
    ]
    assert (16, 64, False) in held
    assert chip in ("v4", "7x") or len(held) == 30  # these refuse some, see the README
    for (key_dim, value_dim, exact), length in itertools.product(held, (1, 200, 4096)):
        blocks = block_sizes.tpu_blocks(length, key_dim, value_dim, exact)
        assert blocks.multiple <= max(128, 2 * length)
        for block in blocks:
            assert block.rows % block.part_rows == block.columns % block.part_columns == 0


def test_says_when_memory_is_short(monkeypatch):
    monkeypatch.setattr(block_sizes, "VMEM_LIMIT", 2**20)
    *inputs, _ = inputs_of(300)
    with pytest.raises(NotImplementedError, match="MiB of vector memory"):
        screening_pallas_tpu(*map(jnp.asarray, inputs))
