"""causal_attention: tiles against the written-out map, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import api, causal_attention
from pallas_kernels.attention.tiling import block_size, query_blocks, unblock_queries
from tests.marks import slow_unless

# one tile; one token; sizes that pad; several blocks of queries and of keys
LENGTHS = (1, 7, 200, 1100)


def _inputs(length, heads=4, groups=2, dim=8, dtype=jnp.float32, batch=2):
    keys = jax.random.split(jax.random.key(length), 4)
    q = jax.random.normal(keys[0], (batch, length, heads, dim), dtype)
    k, v = (jax.random.normal(key, (batch, length, groups, dim), dtype) for key in keys[1:3])
    return q, k, v, jax.random.normal(keys[3], q.shape, dtype)


def _segments(length):
    """Row 0: three documents and padding; row 1: one document."""
    cuts = np.array([0.3, 0.35, 0.8, 0.95]) * length
    row = 1 + np.searchsorted(cuts, np.arange(length), side="right")
    return jnp.asarray(np.stack([np.where(row == 5, 0, row), np.ones(length)]), jnp.int32)


@functools.partial(jax.jit, static_argnames="implementation")
def _value_and_grads(q, k, v, cotangent, segment_ids, implementation):
    out, pull = jax.vjp(
        lambda *x: causal_attention(*x, segment_ids, implementation=implementation), q, k, v
    )
    return out, *pull(cotangent)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_tiles_match_the_map(length, packed):
    q, k, v, cotangent = _inputs(length)
    segment_ids = _segments(length) if packed else None
    want = _value_and_grads(q, k, v, cotangent, segment_ids, "reference")
    got = _value_and_grads(q, k, v, cotangent, segment_ids, "chunked")
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=name)
    if packed:
        padding = segment_ids == 0
        for x in got:
            assert not jnp.any(x[padding])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("queries", slow_unless((1, 650), (1, 300, 650)))
def test_more_keys_than_queries(queries, packed):
    """Queries of the last tokens alone: a part of the whole, and of all gradients theirs."""
    length = 700
    q, k, v, cotangent = _inputs(length)
    segment_ids = _segments(length) if packed else None
    cotangent = cotangent.at[:, : length - queries].set(0)
    want = _value_and_grads(q, k, v, cotangent, segment_ids, "reference")
    want = [x[:, -queries:] if n < 2 else x for n, x in enumerate(want)]
    some = q[:, -queries:], k, v, cotangent[:, -queries:]
    for implementation in ("reference", "chunked"):
        got = _value_and_grads(*some, segment_ids, implementation)
        for name, a, b in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=name)


def test_float64_throughout():
    with jax.enable_x64(True):
        q, k, v, cotangent = _inputs(70, dtype=jnp.float64)
        want = _value_and_grads(q, k, v, cotangent, None, "reference")
        got = _value_and_grads(q, k, v, cotangent, None, "chunked")
        for a, b in zip(got, want, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_no_future_in_bfloat16():
    """Bit-identical outputs before a changed token, and zero gradient to every later one."""
    q, k, v, _ = _inputs(1100, dtype=jnp.bfloat16)
    attend = jax.jit(functools.partial(causal_attention, implementation="chunked"))
    out = attend(q, k, v)
    at = 657
    changed = attend(*(x.at[:, at].add(1) for x in (q, k, v)))
    np.testing.assert_array_equal(out[:, :at], changed[:, :at])
    assert jnp.any(out[:, at:] != changed[:, at:])
    grads = jax.jit(jax.grad(lambda *x: attend(*x)[:, at - 1].astype(jnp.float32).sum(), (0, 1, 2)))
    for grad in grads(q, k, v):
        assert not jnp.any(grad[:, at:])


def test_documents_do_not_touch():
    q, k, v, _ = _inputs(200)
    segment_ids = _segments(200)
    attend = jax.jit(functools.partial(causal_attention, implementation="chunked"))
    out = attend(q, k, v, segment_ids)
    second = segment_ids[0] == 2
    change = jnp.where(second[None, :, None, None], 3.0, 0)
    changed = attend(*(x + change for x in (q, k, v)), segment_ids)
    np.testing.assert_array_equal(out[0][~second], changed[0][~second])


def test_query_blocks_round_trip():
    q, *_ = _inputs(21, heads=6, groups=3)
    blocks = query_blocks(q, 3, 8)
    assert blocks.shape == (3, 2, 3, 16, 8)
    np.testing.assert_array_equal(unblock_queries(blocks, 8, 21), q)


@pytest.mark.parametrize("length", [1, 5, 9, 256, 257, 1000])
def test_block_size_covers_with_little_waste(length):
    block = block_size(length, 256)
    assert block <= 256
    assert -(-length // block) * block - length < 8 * -(-length // 256)


def test_errors():
    q, k, v, _ = _inputs(7)
    check = api._check  # under pytest the public signature's types would speak first
    with pytest.raises(ValueError, match="must be None or one of"):
        check(q, k, v, None, "pallas")
    with pytest.raises(ValueError, match="must be a multiple of the 3 groups"):
        check(q, jnp.zeros((2, 7, 3, 8)), jnp.zeros((2, 7, 3, 8)), None, None)
    with pytest.raises(ValueError, match="q must hold 1 to S = 5"):
        check(q, k[:, :5], v[:, :5], None, None)
    with pytest.raises(ValueError, match="segment_ids"):
        check(q, k, v, jnp.zeros((2, 3), jnp.int32), None)
    with pytest.raises(NotImplementedError, match="needs an NVIDIA GPU"):
        causal_attention(q, k, v, implementation="cudnn")
