"""Chunk and tree forms against the reference, levels beyond the last, states, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import gated_delta_rule, ssd
from pallas_kernels.log_linear import LogLinearState, empty_state, level_count
from tests.log_linear.cases import OPS, assert_close, inputs, part, run
from tests.marks import slow_unless

FEW = slow_unless(("gated_delta_rule",), OPS)  # the other is the same less an inverse


def values_and_gradients(op, x, cotangent_of_state=True, **settings):
    """y, state and the gradients of a fixed random function of both (or of y alone)."""

    @jax.jit
    def outputs(x):
        def loss(x):
            y, state = run(op, x, **settings)
            weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
            total = jnp.sum(weights * y)
            if state is not None and cotangent_of_state:
                total += jnp.sum(jnp.sin(jnp.arange(state.levels.size).reshape(
                    state.levels.shape)) * state.levels)  # fmt: skip
            return total, (y, state)

        (_, (y, state)), gradients = jax.value_and_grad(loss, has_aux=True)(x)
        return y, state, gradients

    return outputs(x)


@pytest.mark.parametrize("op", FEW)
@pytest.mark.parametrize(
    ("length", "chunk_size"),
    [(1, 16), (7, 4), (200, 64)]
    + [pytest.param(65, 64, marks=pytest.mark.slow), pytest.param(257, 16, marks=pytest.mark.slow)]
    + [pytest.param(length, 64, marks=pytest.mark.exhaustive) for length in (2, 63, 64, 257, 1000)]
    + [pytest.param(257, size, marks=pytest.mark.exhaustive) for size in (32, 128, 256)],
)
def test_chunked_is_the_reference(op, length, chunk_size):
    x = inputs(length, level_count(length) + 1, groups=1, key_dim=7, value_dim=5)
    want = values_and_gradients(op, x, implementation="reference")
    got = values_and_gradients(op, x, implementation="chunked", chunk_size=chunk_size)
    assert_close(got[0], want[0], 1e-5, "y")
    assert_close(got[1].levels, want[1].levels, 1e-5, "state")
    for name, gradient in got[2].items():
        assert_close(gradient, want[2][name], 1e-4, f"d{name}")


@pytest.mark.slow
@pytest.mark.parametrize("op", FEW)
@pytest.mark.parametrize("length", slow_unless((113,), (9, 64, 113, 200), exhaustive=(9, 64)))
def test_the_tree_is_the_scan(op, length):
    """Chunks of 8: 2, 8, 15 and 25 of them, so blocks whole and cut short on every level."""
    x = inputs(length, level_count(length), groups=1)
    settings = {"chunk_size": 8, "implementation": "chunked"}
    scan = values_and_gradients(op, x, cotangent_of_state=False, **settings)
    tree = values_and_gradients(op, x, return_state=False, **settings)
    assert tree[1] is None
    assert_close(tree[0], scan[0], 1e-6, "y")
    for name, gradient in tree[2].items():
        assert_close(gradient, scan[2][name], 1e-5, f"d{name}")


@pytest.mark.parametrize("op", FEW)
def test_neighbouring_heads_share_a_group(op):
    x = inputs(37, 7, groups=2, heads=4)
    each = {name: np.repeat(x[name], 2, axis=2) for name in ("q", "k")}
    for implementation in ("reference", "chunked"):
        got, _ = run(op, x, implementation=implementation, chunk_size=16)
        want, _ = run(op, {**x, **each}, implementation="reference")
        assert_close(got, want, 1e-5, implementation)


@pytest.mark.parametrize("op", OPS)
def test_equal_level_scales_give_the_parent(op):
    x = inputs(100, 8)
    x["level_scales"] = np.ones_like(x["level_scales"])
    y, _ = run(op, x, chunk_size=16)
    q, k, v, g, beta = (jnp.asarray(x[name]) for name in ("q", "k", "v", "g", "beta"))
    if op == "ssd":
        want, _ = ssd(q, k, v, g)
    else:
        want, _ = gated_delta_rule(q, k, v, g, beta, scale=1.0)
    assert_close(y, want, 1e-5, op)


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_strong_decay_has_right_gradients(op):
    x = inputs(96, 8, decay=3.0)
    want = values_and_gradients(op, x, implementation="reference")
    got = values_and_gradients(op, x, chunk_size=64)
    for name, gradient in got[2].items():
        assert np.isfinite(gradient).all(), name
        assert_close(gradient, want[2][name], 1e-4, f"d{name}")


@pytest.mark.parametrize("op", FEW)
@pytest.mark.parametrize("levels", slow_unless((3,), (5, 3, 1)))
def test_beyond_the_last_level(op, levels):
    length = 70
    x = inputs(length, levels)
    scales = x["level_scales"]
    longer = np.concatenate([scales, np.repeat(scales[..., -1:], 8 - levels, axis=-1)], axis=-1)
    want, whole = run(op, {**x, "level_scales": longer}, implementation="reference")
    for implementation in ("reference", "chunked"):
        settings = {"implementation": implementation, "chunk_size": 16}
        y, state = run(op, x, beyond_levels="clamp", **settings)
        assert_close(y, want, 1e-5, "clamp")
        assert state.levels.shape[2] == levels
        merged = np.sum(whole.levels[:, :, levels - 1 :], axis=2)
        assert_close(state.levels[:, :, levels - 1], merged, 1e-5, "the last level")
        y, state = run(op, x, beyond_levels="extend", **settings)
        assert_close(y, want, 1e-5, "extend")
        assert_close(state.levels, whole.levels, 1e-5, "extend: state")


@pytest.mark.parametrize("op", FEW)
@pytest.mark.parametrize("levels", slow_unless((8,), (8, 3)))
def test_every_continuation_is_the_whole(op, levels):
    """op(x[:a]), then op(x[a:]) from its state, for every a; both padded to one length."""
    length = 70
    x = inputs(length, levels)
    settings = {"beyond_levels": "error" if levels == 8 else "clamp", "max_documents": 1}
    want, end = run(op, x, implementation="reference", beyond_levels=settings["beyond_levels"])

    @jax.jit
    def in_two(x, a):
        here = jnp.arange(length)
        first = jnp.broadcast_to(here < a, (2, length)).astype(jnp.int32)
        y, state = run(op, x, segment_ids=first, chunk_size=16, **settings)
        later = jax.tree.map(lambda value: jnp.roll(value, -a, axis=1), x)
        rest = jnp.broadcast_to(here < length - a, (2, length)).astype(jnp.int32)
        more, state = run(
            op, later, segment_ids=rest, initial_state=state, chunk_size=16, **settings
        )
        return y + jnp.roll(more, a, axis=1), state

    for a in range(1, length):
        y, state = in_two(x, a)
        assert_close(y, want, 1e-5, f"cut at {a}")
        assert_close(state.levels, end.levels, 1e-5, f"cut at {a}: state")
        assert (np.asarray(state.length) == length).all()


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_gradients_through_a_continued_state(op):
    x, cut = inputs(40, 7), 21
    state = run(op, part(x, 0, cut), chunk_size=16)[1]

    def total(levels, later, implementation):
        start = LogLinearState(levels, state.length)
        y, end = run(op, later, initial_state=start, chunk_size=16, implementation=implementation)
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(end.levels))

    gradient = jax.jit(jax.grad(total, argnums=(0, 1)), static_argnums=2)
    want = gradient(state.levels, part(x, cut, 40), "reference")
    got = gradient(state.levels, part(x, cut, 40), "chunked")
    # Levels that are empty after 21 tokens have no meaning, nor has their gradient.
    held = [0] + [bit + 1 for bit in range(6) if (cut - 1) >> bit & 1]
    assert_close(got[0][:, :, held], want[0][:, :, held], 1e-5, "initial state")
    for name, value in got[1].items():
        assert_close(value, want[1][name], 1e-4, name)


@pytest.mark.parametrize("op", OPS)
def test_token_by_token_after_a_prefill_of_eight(op):
    """Where the authors' cache forgets how full its levels are."""
    x = inputs(20, 6)
    want, _ = run(op, x, implementation="reference")
    y, state = run(op, part(x, 0, 8))
    outputs = [y]
    step = jax.jit(lambda token, state: run(op, token, initial_state=state))
    for t in range(8, 20):
        y, state = step(part(x, t, t + 1), state)
        outputs.append(y)
    assert_close(np.concatenate(outputs, axis=1), want, 1e-5, op)


@pytest.mark.parametrize("op", OPS)
def test_a_state_that_grows_beyond_its_levels_is_loud(op):
    x = inputs(9, 4)
    _, state = run(op, part(x, 0, 8))
    y, _ = run(op, part(x, 8, 9), initial_state=state)
    assert np.isnan(y).all()
    y, _ = run(op, part(x, 8, 9), initial_state=state, beyond_levels="clamp")
    assert np.isfinite(y).all()


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_works_under_vmap_and_remat(op):
    x = inputs(33, 7)
    want, _ = run(op, x, chunk_size=16)
    rows = jax.tree.map(lambda value: value[:, None], x)
    y = jax.vmap(jax.checkpoint(lambda row: run(op, row, chunk_size=16)[0]))(rows)
    assert_close(y[:, 0], want, 1e-6, op)


@pytest.mark.parametrize("op", OPS)
def test_bfloat16_never_reads_the_future(op):
    x = {n: v if n in ("g", "beta") else jnp.asarray(v, jnp.bfloat16)
         for n, v in inputs(100, 8).items()}  # fmt: skip
    changed = jax.tree.map(lambda value: value.at[:, 57].add(1), jax.tree.map(jnp.asarray, x))
    for settings in ({}, {"return_state": False}):
        f = jax.jit(lambda x: run(op, x, chunk_size=16, **settings)[0])  # noqa: B023
        y, other = f(x), f(changed)
        assert y.dtype == jnp.bfloat16
        np.testing.assert_array_equal(y[:, :57], other[:, :57])
        assert (y[:, 57] != other[:, 57]).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": 48}, "chunk_size must be a power of two for levels, got 48"),
        (
            {"beyond_levels": "drop"},
            "beyond_levels must be one of error, clamp, extend",
        ),
        ({"level_scales": np.ones((2, 9, 2, 4), np.float32)}, "4 levels hold 8 tokens, got 9"),
        ({"level_scales": np.ones((2, 9, 2, 0), np.float32)}, "level_scales must be"),
        ({"max_documents": 0}, "max_documents must be an integer >= 1, got 0"),
        (
            {"initial_state": empty_state(2, 2, 3, 8, 6, jnp.dtype("float32"))},
            "initial_state must be",
        ),
        ({"implementation": "pallas_tpu"}, "compiled for a TPU, and this is a CPU"),
    ],
)
def test_bad_arguments(change, message):
    change = {n: jnp.asarray(v) if n == "level_scales" else v for n, v in change.items()}
    with pytest.raises((ValueError, NotImplementedError), match=message):
        run("ssd", inputs(9, 5), **change)


def test_packed_rows_under_jit_need_a_bound():
    x = inputs(9, 5)
    with pytest.raises(ValueError, match="segment_ids need max_documents"):
        jax.jit(lambda ids: run("ssd", x, segment_ids=ids))(jnp.ones((2, 9), jnp.int32))
