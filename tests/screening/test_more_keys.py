"""More keys than queries, which are those of the last tokens; and a gap between the two."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import interpret_kernels, screening
from tests.marks import slow_unless
from tests.screening.decode_cases import unit

KEYS = 430
NAMES = ("h", "q", "k", "v", "window", "width")
WINDOWS = (3.5, 90.0, 300.0, np.inf)
FORMS = ("reference", "chunked", "pallas_tpu", "pallas_gpu")
FEW = slow_unless(("chunked", "pallas_gpu"), FORMS, exhaustive=("pallas_tpu",))


def inputs_of(queries, seed=0):
    rng = np.random.default_rng(seed)
    heads = len(WINDOWS)
    q, k = (unit(rng.standard_normal((2, KEYS, heads, 16))) for _ in range(2))
    v = unit(rng.standard_normal((2, KEYS, heads, 32)))
    dh = rng.standard_normal((2, queries, heads, 32))
    width = [0.4, 0.9, 0.7, 0.95]
    return [jnp.asarray(x, jnp.float32) for x in (q, k, v, WINDOWS, width, dh)]


def documents():
    ids = np.zeros((2, KEYS), np.int32)
    ids[0, :300], ids[0, 300:420] = 1, 2  # ends in padding
    ids[1, 50:] = 3
    return jnp.asarray(ids)


def values_and_gradients(queries, op, inputs):
    """Of q, k, v, window and width, with queries of the last tokens alone."""
    q, k, v, window, width, dh = inputs
    h, pull = jax.vjp(op, q[:, -queries:], k, v, window, width)
    return h, *pull(dh)


def of_all_queries(queries, segments):
    def op(q, *others):
        q = jnp.pad(q, [(0, 0), (KEYS - queries, 0), (0, 0), (0, 0)])
        return screening(q, *others, segments, implementation="reference")[:, -queries:]

    return op


@pytest.mark.parametrize(
    ("queries", "packed"),
    slow_unless(
        ((130, True),),
        ((130, True), (1, False), (300, False)),
        exhaustive=((1, False), (300, False)),
    ),
)
@pytest.mark.parametrize("implementation", FEW)
def test_is_a_part_of_the_whole(implementation, queries, packed):
    segments = documents() if packed else None
    inputs = inputs_of(queries)
    want = values_and_gradients(queries, of_all_queries(queries, segments), inputs)

    @jax.jit
    def got(*inputs):
        return values_and_gradients(
            queries, lambda *x: screening(*x, segments, implementation=implementation), inputs
        )

    with interpret_kernels():
        got = got(*inputs)
    for name, a, b in zip(NAMES, got, want, strict=True):
        assert a.shape == b.shape
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert error < 2e-5, f"{name}: relative error {error:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("packed", slow_unless((True,), (False, True), exhaustive=(False,)))
@pytest.mark.parametrize(
    "implementation",
    slow_unless(("chunked",), FORMS),
)
def test_keys_before_a_gap_give_what_they_give_among_all(implementation, packed):
    """One program for all gaps: nearest keys, more than a block of any form between, far ones."""
    queries, keys, segments = 130, 70, documents() if packed else None
    inputs = inputs_of(queries)
    first = KEYS - queries  # position of the first query

    def whole(start, q, k, v, *scalars):
        """With the values of all other tokens gone."""
        is_key = (jnp.arange(KEYS) >= start) & (jnp.arange(KEYS) < start + keys)
        v = jnp.where(is_key[:, None, None], v, 0)
        return of_all_queries(queries, segments)(q, k, v, *scalars)

    @jax.jit
    def got(start, *inputs):
        def apart(q, k, v, *scalars):
            k, v = (jax.lax.dynamic_slice_in_dim(x, start, keys, 1) for x in (k, v))
            ids = None
            if segments is not None:
                ids = jax.lax.dynamic_slice_in_dim(segments, start, keys, 1)
                ids = jnp.concatenate([ids, segments[:, first:]], 1)
            gap = first - keys - start
            return screening(q, k, v, *scalars, ids, gap=gap, implementation=implementation)

        return values_and_gradients(queries, apart, inputs)

    with interpret_kernels():
        for gap in (0, 1, 130, 230):
            start = first - keys - gap
            want = values_and_gradients(queries, partial(whole, start), inputs)
            for name, a, b in zip(NAMES, got(start, *inputs), want, strict=True):
                scale = np.linalg.norm(b, axis=None) + 1e-3
                error = np.linalg.norm(a - b) / scale
                assert error < 2e-5, f"gap {gap}, {name}: relative error {error:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "implementation",
    ["chunked", pytest.param("pallas_tpu", marks=pytest.mark.exhaustive), "pallas_gpu"],
)
def test_more_queries_than_keys_before_a_gap(implementation):
    q, k, v, window, width, dh = inputs_of(KEYS)
    inputs = q, k[:, :20], v[:, :20], window, width, dh
    with interpret_kernels():
        got, want = (
            values_and_gradients(KEYS, partial(screening, gap=5, implementation=name), inputs)
            for name in (implementation, "reference")
        )
    for name, a, b in zip(NAMES, got, want, strict=True):
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert error < 2e-5, f"{name}: relative error {error:.1e}"
