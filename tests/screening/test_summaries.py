"""Summaries of key blocks: bounds that hold in floating point, whatever was written and when."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.screening.decode import ring_slots
from pallas_kernels.screening.reference import trim
from pallas_kernels.screening.summaries import (
    BLOCK_SLOTS,
    may_accept,
    similarity_bound,
    summarize,
    update_summaries,
)
from tests.screening.decode_cases import unit

_BLOCKS = 4


def _similarities(q, keys):
    """[orders, Q, S] in float32: sums in both directions, by numpy, rounded once, and by XLA."""
    products = q[:, None] * keys
    forward = backward = np.zeros(products.shape[:2], np.float32)
    for c in range(q.shape[1]):
        forward = forward + products[:, :, c]
        backward = backward + products[:, :, -1 - c]
    once = (q.astype(np.float64) @ keys.astype(np.float64).T).astype(np.float32)
    xla = jnp.einsum("qk,sk->qs", q, keys, precision="highest")
    return np.stack([forward, backward, products.sum(-1), once, np.asarray(xla)])


@jax.jit
def _block_bounds(q, keys):
    return similarity_bound(q[:, None], *summarize(keys[None]))[..., 0]


def _bounds(q, keys):
    """[Q, S]: the bound of each slot's block."""
    bound = np.asarray(_block_bounds(jnp.asarray(q, jnp.float32), jnp.asarray(keys)))
    return np.repeat(bound, BLOCK_SLOTS, axis=1)[:, : len(keys)]


def _keys(kind, rng, dim):
    slots = _BLOCKS * BLOCK_SLOTS
    if kind == "random":
        return unit(rng.normal(size=(slots, dim)))
    if kind == "clustered":
        spread = 10.0 ** -rng.uniform(0.3, 6)
        return unit(unit(rng.normal(size=dim)) + spread * rng.normal(size=(slots, dim)))
    if kind == "equal":
        return np.tile(unit(rng.normal(size=dim)), (slots, 1))
    # Half written: the rest of the buffer holds zeros.
    keys = unit(rng.normal(size=(slots, dim)))
    keys[int(rng.integers(slots)) :] = 0
    return keys


def _stored(x, dtype):
    return np.asarray(jnp.asarray(x, dtype))


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["random", "clustered", "equal", "half"]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    dim=st.sampled_from([2, 16, 64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_similarity_exceeds_its_bound(kind, dtype, dim, seed):
    rng = np.random.default_rng(seed)
    keys = _stored(_keys(kind, rng, dim), dtype)
    some = keys[rng.integers(len(keys), size=8)].astype(np.float32)
    q = np.concatenate([some, -some, unit(rng.normal(size=(48, dim)))])
    q = _stored(q, dtype).astype(np.float32)
    assert (_similarities(q, keys.astype(np.float32)) <= _bounds(q, keys)).all()


@settings(deadline=None, max_examples=60)
@given(dtype=st.sampled_from(["float32", "bfloat16"]), seed=st.integers(0, 2**32 - 1))
def test_a_block_of_equal_keys_is_decided_at_the_threshold(dtype, seed):
    """Similarities on the threshold and next to it: the case that rounding could get wrong."""
    rng = np.random.default_rng(seed)
    keys = np.tile(_stored(unit(rng.normal(size=16)), dtype), (BLOCK_SLOTS, 1))
    q = _stored(unit(rng.normal(size=(1, 16))), dtype).astype(np.float32)
    similarities = _similarities(q, keys.astype(np.float32))[:, 0, 0]
    on_threshold = 1 - similarities  # a width that puts each order's similarity exactly there
    steps = np.float32([-4, -1, 0, 1, 4])
    widths = (on_threshold[:, None] * (1 + steps * np.float32(2**-23))).ravel()
    widths = widths[(widths > 0) & (widths < 1)]
    similarities = np.tile(similarities[:, None, None, None], (1, len(widths), 1, 1))
    alpha = np.asarray(trim(jnp.asarray(similarities), jnp.asarray(widths)))
    accepted = alpha.max((0, 2, 3)) > 0
    bound = jnp.asarray(_bounds(q, keys)[0, 0])
    assert np.asarray(may_accept(bound, jnp.asarray(widths)))[accepted].all()
    assert not may_accept(bound, jnp.asarray(widths * 0.9999 - 2e-5)).any()


def test_tight_clusters_elsewhere_are_rejected():
    rng = np.random.default_rng(0)
    centre = unit(rng.normal(size=16))
    keys = unit(centre + 0.01 * rng.normal(size=(BLOCK_SLOTS, 16))).astype(np.float32)
    away = unit(rng.normal(size=16) - centre).astype(np.float32)
    width = jnp.float32(0.5)
    assert not may_accept(jnp.asarray(_bounds(away[None], keys)[0, 0]), width)
    assert may_accept(jnp.asarray(_bounds(keys[:1], keys)[0, 0]), width)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_updates_follow_rings_that_overwrite(dtype):
    """Rings of two tiles, written by steps and chunks: always what the buffer itself gives."""
    rng = np.random.default_rng(1)
    size, offset, slots = jnp.asarray([37, 90]), jnp.asarray([11, 48]), 5000
    keys = jnp.zeros((2, slots, 8), dtype)
    summaries = summarize(keys)
    length = jnp.zeros(2, jnp.int32)
    update = jax.jit(update_summaries)
    for tokens in (1, 50, 1, 200, 1, 50, 1):
        real = jnp.asarray([tokens, max(1, tokens - 3)])
        position = length[:, None] + jnp.arange(tokens)
        written = jnp.where(jnp.arange(tokens) < real[:, None], position, -1)
        length = length + real
        slot = ring_slots(written[:, :, None], length[:, None, None], size)
        entries = jnp.where(slot < 0, slots, slot + offset).reshape(2, -1)
        new = jnp.asarray(unit(rng.normal(size=(2, tokens * 2, 8))), dtype)
        keys = keys.at[jnp.arange(2)[:, None], entries].set(new, mode="drop")
        summaries = update(summaries, keys, entries)
        want = summarize(keys)
        np.testing.assert_array_equal(summaries.lower, want.lower)
        np.testing.assert_array_equal(summaries.upper, want.upper)
        np.testing.assert_allclose(summaries.radius, want.radius, rtol=1e-6)


def test_sizes():
    """One summary per 32 slots, at 1/16 of the keys' bytes and a radius, padded to 128."""
    summaries = summarize(jnp.zeros((3, 4097, 16), jnp.bfloat16))
    assert [x.shape for x in summaries] == [(3, 256, 16), (3, 256, 16), (3, 256, 1)]
    assert [x.dtype for x in summaries] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
