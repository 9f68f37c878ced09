"""Top-k, top-p and draws against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax.sampling import keep_top_k, keep_top_p, sample

LOGITS = 2 * np.random.default_rng(0).standard_normal((20, 33)).astype(np.float32)


def _nucleus(row, p):
    """Ids in the nucleus, written as the definition: take the likeliest until p is reached."""
    probabilities = np.exp(row - row.max()).astype(np.float64)
    probabilities /= probabilities.sum()
    chosen, total = set(), 0.0
    for token in np.argsort(-probabilities):
        chosen.add(int(token))
        total += probabilities[token]
        if total >= p:
            break
    return chosen


@pytest.mark.parametrize("k", [1, 5, 33, 100])
def test_top_k(k):
    kept = np.isfinite(keep_top_k(jnp.asarray(LOGITS), k))
    for row, mask in zip(LOGITS, kept, strict=True):
        assert set(np.flatnonzero(mask)) == set(np.argsort(-row)[:k])


@pytest.mark.parametrize("p", [1e-9, 0.3, 0.9, 0.999])
def test_top_p(p):
    kept = np.isfinite(keep_top_p(jnp.asarray(LOGITS), p))
    for row, mask in zip(LOGITS, kept, strict=True):
        assert set(np.flatnonzero(mask)) == _nucleus(row, p)


def test_top_p_one_keeps_all():
    assert np.isfinite(keep_top_p(jnp.asarray(LOGITS), 1.0)).all()
    # Rounded, the sum of all but the least likely of these is 1.
    many = np.random.default_rng(0).normal(scale=4, size=50257).astype(np.float32)
    assert np.isfinite(keep_top_p(jnp.asarray(many), 1.0)).all()


def test_draws_follow_the_filtered_distribution_in_order():
    """Temperature first, then top-k, then top-p on what top-k left."""
    row, temperature, k, p, draws = LOGITS[0], 0.7, 6, 0.8, 4000
    scaled = row / temperature
    after_k = np.where(scaled >= np.sort(scaled)[-k], scaled, -np.inf)
    allowed = _nucleus(after_k, p)
    weights = np.array([np.exp(scaled[t]) if t in allowed else 0 for t in range(len(row))])
    want = weights / weights.sum()
    keys = jax.random.split(jax.random.key(0), draws)
    tokens = sample(jnp.broadcast_to(row, (draws, len(row))), keys, temperature, k, p)
    got = np.bincount(tokens, minlength=len(row)) / draws
    assert set(np.flatnonzero(got)) <= allowed
    assert len(allowed) < k, "the case must let top-p remove something"
    np.testing.assert_allclose(got, want, atol=4 * np.sqrt(0.25 / draws))


def test_rows_draw_with_their_own_key():
    keys = jax.random.split(jax.random.key(1), 20)
    together = sample(jnp.asarray(LOGITS), keys, 1.0, 9, 0.95)
    alone = [
        sample(jnp.asarray(LOGITS[b : b + 1]), keys[b : b + 1], 1.0, 9, 0.95)[0] for b in (3, 7)
    ]
    np.testing.assert_array_equal(together[jnp.asarray([3, 7])], alone)


def test_temperatures_that_divide_to_infinity_take_the_most_likely_token():
    logits = jnp.asarray([[1.0, 3.0, -jnp.inf, 2.0], [-5.0, -7.0, -2.0, -3.0]])
    keys = jax.random.split(jax.random.key(0), 2)
    for temperature in (1e-38, 1e-45, 1e-60):
        got = jax.jit(sample)(logits, keys, jnp.float32(temperature), top_p=0.9)
        np.testing.assert_array_equal(got, [1, 2])
