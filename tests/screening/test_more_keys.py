"""More keys than queries: the queries are those of the last tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import interpret_kernels, screening
from tests.screening.decode_cases import unit

KEYS = 430
WINDOWS = (3.5, 90.0, 300.0, np.inf)


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
    [(130, True), *(pytest.param(n, False, marks=pytest.mark.slow) for n in (1, 300))],
)
@pytest.mark.parametrize("implementation", ["reference", "chunked", "pallas_tpu", "pallas_gpu"])
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
    for name, a, b in zip(("h", "q", "k", "v", "window", "width"), got, want, strict=True):
        assert a.shape == b.shape
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert error < 2e-5, f"{name}: relative error {error:.1e}"
