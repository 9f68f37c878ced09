"""decode_attention: any split into cached and new tokens gives what full attention gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import causal_attention, decode_attention


def _case(cached, new, capacity, layers=2):
    """Rows with `cached[b]` entries in layer 1 of the cache, `new` tokens after them."""
    total = max(cached) + new
    keys = jax.random.split(jax.random.key(0), 3)
    batch, heads, groups, dim = len(cached), 4, 2, 8
    q = jax.random.normal(keys[0], (batch, total, heads, dim))
    k, v = (jax.random.normal(key, (batch, total, groups, dim)) for key in keys[1:])
    # Entries that must not be read hold something that would be noticed.
    caches = [np.full((layers, batch, groups, capacity, dim), 1e3, np.float32) for _ in range(2)]
    for cache, x in zip(caches, (k, v), strict=True):
        for b, n in enumerate(cached):
            cache[1, b, :, :n] = np.swapaxes(x[b, :n], 0, 1)
    tail = [jnp.stack([x[b, n : n + new] for b, n in enumerate(cached)]) for x in (q, k, v)]
    return (q, k, v), tail, [jnp.asarray(cache) for cache in caches]


# new = 1: a step; new = 300: two blocks of queries. 1200 entries: two blocks of cache, uneven.
@pytest.mark.parametrize(
    ("cached", "new", "capacity"),
    [((0, 5), 1, 8), ((1100, 30), 3, 1200), ((20, 0, 7), 300, 400)],
)
def test_ragged_rows(cached, new, capacity):
    (q, k, v), tail, caches = _case(cached, new, capacity)
    batch = len(cached)
    out = jax.jit(decode_attention)(
        *tail,
        *caches,
        1,
        jnp.zeros(batch, jnp.int32),
        jnp.asarray(cached),
        jnp.ones((batch, new), jnp.int32),
        jnp.ones((batch, new), bool),
    )
    for b, n in enumerate(cached):
        one = slice(b, b + 1)
        want = causal_attention(q[one], k[one], v[one], implementation="reference")
        np.testing.assert_allclose(out[b], want[0, n : n + new], rtol=2e-5, atol=2e-5)


def test_documents_and_padding():
    """A chunk that ends the cached document, holds another and then padding."""
    cached, new = (6,), 9
    (q, k, v), tail, caches = _case(cached, new, 16)
    start = 2  # the cache holds two documents; the last one begins here
    chunk = jnp.asarray([[4, 4, 4, 5, 5, 5, 5, 0, 0]])
    out = decode_attention(
        *tail, *caches, 1, jnp.asarray([start]), jnp.asarray(cached), chunk, chunk == 4
    )
    row = jnp.concatenate([jnp.asarray([[3, 3, 4, 4, 4, 4]]), chunk], axis=1)
    want = causal_attention(q, k, v, row, implementation="reference")
    np.testing.assert_allclose(out, want[:, 6:], rtol=2e-5, atol=2e-5)


def test_work_follows_the_context_not_the_capacity():
    """The loop over cache blocks has a run-time bound: no product spans the whole capacity."""
    capacity = 1 << 16
    cache = jax.ShapeDtypeStruct((1, 1, 1, capacity, 8), jnp.float32)
    one = jax.ShapeDtypeStruct((1, 1, 1, 8), jnp.float32)
    ints = jax.ShapeDtypeStruct((1,), jnp.int32)
    jaxpr = jax.make_jaxpr(functools.partial(decode_attention, layer=0))(
        one,
        one,
        one,
        cache,
        cache,
        start=ints,
        length=ints,
        segment_ids=jax.ShapeDtypeStruct((1, 1), jnp.int32),
        continues=jax.ShapeDtypeStruct((1, 1), bool),
    )
    products = [line for line in str(jaxpr).splitlines() if "dot_general" in line]
    assert products
    assert not any(str(capacity) in line for line in products)
