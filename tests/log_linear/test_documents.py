"""Packed documents: levels count from each one's start, and nothing leaks between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import log_linear_ssd
from tests.log_linear.cases import OPS, assert_close, inputs, part, run
from tests.marks import slow_unless

LENGTH = 130


def segments(*lengths):
    """Two rows: documents of these lengths, then padding; and one that begins with padding."""
    row = np.zeros(LENGTH, np.int32)
    at = 0
    for number, length in enumerate(lengths, start=1):
        row[at : at + length] = number
        at += length
    assert at <= LENGTH
    return np.stack([row, np.roll(row, LENGTH - at)])


def gradients(op, x, ids, chunk_size=16):
    def loss(x):
        y, _ = run(op, x, segment_ids=ids, max_documents=4, chunk_size=chunk_size)
        weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return jnp.sum(weights * y), y

    return jax.grad(loss, has_aux=True)(x)


@pytest.mark.parametrize("op", slow_unless(("gated_delta_rule",), OPS))
@pytest.mark.parametrize("start", slow_unless((64,), (1, 37, 63, 64, 65), exhaustive=(63, 65)))
def test_a_packed_document_is_the_document_alone(op, start):
    x = inputs(LENGTH, 9)
    ids = segments(start, 50, 9)
    packed, y = jax.jit(gradients, static_argnums=0)(op, x, ids)
    for row, first in ((0, start), (1, LENGTH - 59)):
        alone = jax.tree.map(lambda v: v[row : row + 1, first : first + 50], x)  # noqa: B023
        weights = np.cos(np.arange(y.size, dtype=np.float32)).reshape(y.shape)

        def loss(x):
            y, _ = run(op, x, chunk_size=16)
            return jnp.sum(weights[row : row + 1, first : first + 50] * y), y  # noqa: B023

        own, want = jax.jit(jax.grad(loss, has_aux=True))(alone)
        assert_close(y[row, first : first + 50], want[0], 1e-5, f"start {first}")
        for name, value in own.items():
            got = packed[name][row, first : first + 50]
            assert_close(got, value[0], 1e-5 if name != "g" else 1e-4, f"start {first}, d{name}")
    assert (np.asarray(y)[ids == 0] == 0).all()


@pytest.mark.parametrize("op", OPS)
def test_documents_are_isolated_bit_for_bit(op):
    x = inputs(LENGTH, 9)
    ids = segments(37, 50, 30)
    noise = inputs(LENGTH, 9, seed=1)
    second = ids == 2
    changed = {n: np.where(second.reshape(*ids.shape, *[1] * (v.ndim - 2)), noise[n], v)
               for n, v in x.items()}  # fmt: skip
    f = jax.jit(gradients, static_argnums=0)
    (before, y), (after, other) = f(op, x, ids), f(op, changed, ids)
    keep = ~second
    np.testing.assert_array_equal(np.asarray(y)[keep], np.asarray(other)[keep])
    assert (np.asarray(y)[second] != np.asarray(other)[second]).any()
    for name in before:
        np.testing.assert_array_equal(
            np.asarray(before[name])[keep], np.asarray(after[name])[keep], name
        )


@pytest.mark.parametrize("op", OPS)
def test_padding_may_hold_anything(op):
    x = inputs(LENGTH, 9)
    ids = segments(37, 50, 30)
    bad = jax.tree.map(
        lambda v: np.where((ids == 0).reshape(*ids.shape, *[1] * (v.ndim - 2)), np.nan, v), x
    )
    f = jax.jit(gradients, static_argnums=0)
    (want, y), (got, other) = f(op, x, ids), f(op, bad, ids)
    np.testing.assert_array_equal(y, other)
    for name in want:
        np.testing.assert_array_equal(want[name], got[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_rows_cut_anywhere_continue_and_keep_their_state(op):
    x = inputs(LENGTH, 9)
    ids = segments(37, 50, 30)
    want, end = run(op, x, segment_ids=ids, max_documents=4, implementation="reference")
    for cut in (20, 45, 125):
        y, state = run(
            op, part(x, 0, cut), segment_ids=ids[:, :cut], max_documents=4, chunk_size=16
        )
        fresh = (ids[:, cut] != ids[:, cut - 1])[:, None, None, None, None]
        # A document that starts right at the cut does not continue the state; padding leaves it.
        fresh = fresh & (ids[:, cut] != 0)[:, None, None, None, None]
        kept = state._replace(
            levels=jnp.where(fresh, 0, state.levels),
            length=jnp.where(fresh[:, 0, 0, 0, 0], 0, state.length),
        )
        more, last = run(
            op,
            part(x, cut, LENGTH),
            segment_ids=ids[:, cut:],
            max_documents=4,
            initial_state=kept,
            chunk_size=16,
        )
        assert_close(np.concatenate([y, more], axis=1), want, 1e-5, f"cut at {cut}")
        assert_close(last.levels, end.levels, 1e-5, f"cut at {cut}: state")
        np.testing.assert_array_equal(last.length, end.length)


def test_a_row_with_more_documents_than_allowed_is_nan():
    x = inputs(LENGTH, 9)
    ids = segments(37, 50, 30)
    ids[1] = ids[1] != 0
    y, state = run("ssd", x, segment_ids=ids, max_documents=2, chunk_size=16)
    assert np.isnan(np.asarray(y)[0][ids[0] != 0]).all()
    assert np.isnan(np.asarray(state.levels)[0]).all()  # or what continues it would be wrong
    assert np.isfinite(np.asarray(y)[1]).all()
    assert np.isfinite(np.asarray(state.levels)[1]).all()


@pytest.mark.parametrize("op", slow_unless(("gated_delta_rule",), OPS))
def test_levels_are_for_documents_not_for_rows(op):
    x = inputs(LENGTH, 7)  # 64 tokens
    ids = segments(64, 64)
    settings = {"max_documents": 2, "chunk_size": 16}
    want, _ = run(op, x, segment_ids=ids, beyond_levels="extend", **settings)
    y, _ = run(op, x, segment_ids=ids, **settings)
    assert_close(y, want, 1e-6, op)
    y, _ = run(op, x, segment_ids=segments(65, 60), **settings)
    assert np.isnan(np.asarray(y)[0, :125]).all()


@pytest.mark.slow
def test_documents_are_counted_where_no_bound_is_given():
    """Also in a jitted function that closes over the segment ids."""
    x = jax.tree.map(jnp.asarray, inputs(9, 5))
    x.pop("beta")
    ids = jnp.asarray([[1, 1, 2, 2, 3, 3, 3, 0, 0], [1] * 9])

    def op(x, **bound):
        return log_linear_ssd(**x, segment_ids=ids, chunk_size=4, **bound)[0]

    want = jax.jit(lambda x: op(x, max_documents=3))(x)
    np.testing.assert_array_equal(jax.jit(op)(x), want)
    assert np.isfinite(want).all()
