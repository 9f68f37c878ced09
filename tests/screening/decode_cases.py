"""Caches filled position by position, and what a dense sum over all positions makes of them."""

import dataclasses

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass
class Case:
    """Arguments of `screening_decode`, and the dense result in float64."""

    arguments: tuple
    want: np.ndarray
    accepted: np.ndarray  # [B, S], whether some query of the slot's tile gives it any relevance
    owner: np.ndarray  # [S], tile of each slot, -1 for none


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def random_keys(rng, batch, tokens, heads, dim):
    return unit(rng.normal(size=(batch, tokens, heads, dim)))


def clustered_keys(rng, batch, tokens, heads, dim, run=64, spread=0.1):
    """Runs of keys around one centre, as a trained tile makes of one passage."""
    centres = unit(rng.normal(size=(batch, -(-tokens // run), heads, dim)))
    noise = spread * rng.normal(size=(batch, tokens, heads, dim))
    return unit(np.repeat(centres, run, axis=1)[:, :tokens] + noise)


def make_case(
    lengths, window, width, *, start=None, queries=1, dtype=jnp.float32, capacity=None,
    slots=None, dims=(16, 64), make_keys=random_keys, near=True, seed=0,
) -> Case:  # fmt: skip
    """Rows of `lengths` written tokens; rings of ceil(window), at most `capacity`, slots.

    Slots come to a multiple of 256 and at least `slots`. With `near`, every query resembles one of
    the keys it may read, so that something is accepted at any width.
    """
    rng = np.random.default_rng(seed)
    batch, heads, longest = len(lengths), len(window), max(lengths)
    key_dim, value_dim = dims
    window, width = np.asarray(window, np.float32), np.asarray(width, np.float32)
    start = np.zeros(batch, np.int32) if start is None else np.asarray(start, np.int32)
    size = np.minimum(np.ceil(window), capacity or longest).astype(np.int32)
    # The first ring begins away from any block's edge.
    offset = (5 + np.cumsum(size) - size).astype(np.int32)
    total = -(-max(int(offset[-1] + size[-1]), slots or 0) // 256) * 256

    def stored(x):
        return np.asarray(jnp.asarray(x, dtype).astype(jnp.float32), np.float64)

    k = stored(make_keys(rng, batch, longest, heads, key_dim))
    v = stored(unit(rng.normal(size=(batch, longest, heads, value_dim))))
    keys, values = np.zeros((batch, total, key_dim)), np.zeros((batch, total, value_dim))
    for b, n in enumerate(lengths):
        for h in range(heads):
            p = np.arange(max(0, n - size[h]), n)
            keys[b, offset[h] + p % size[h]] = k[b, p, h]
            values[b, offset[h] + p % size[h]] = v[b, p, h]

    q = unit(rng.normal(size=(batch, queries, heads, key_dim)))
    if near:
        for b, n in enumerate(lengths):
            for h in range(heads):
                reach = int(min(size[h], n - start[b], np.ceil(window[h]) - 1))
                for t in range(queries if reach > 0 else 0):
                    chosen = k[b, n - 1 - rng.integers(reach), h]
                    q[b, t, h] = unit(chosen + 0.02 * rng.normal(size=key_dim))
    q = stored(q)
    positions = np.asarray(lengths)[:, None] + np.arange(queries)

    want = np.zeros((batch, queries, heads, value_dim))
    accepted = np.zeros((batch, total), bool)
    for b, n in enumerate(lengths):
        for h in range(heads):
            p = np.arange(max(start[b], n - size[h]), n)
            distance = positions[b][:, None] - p
            w, r = float(window[h]), float(width[h])
            mask = np.where(distance < w, (np.cos(np.pi * distance / w) + 1) / 2, 0)
            alpha = np.maximum(1 - (1 - q[b, :, h] @ k[b, p, h].T) / r, 0) ** 2
            want[b, :, h] = (alpha * mask) @ v[b, p, h]
            accepted[b, offset[h] + p % size[h]] = ((alpha > 0) & (distance < w)).any(0)
    owner = np.full(total, -1)
    for h in range(heads):
        owner[offset[h] : offset[h] + size[h]] = h
    arguments = (
        *(jnp.asarray(x, dtype) for x in (q, keys, values)),
        *(jnp.asarray(x, jnp.int32) for x in (positions, lengths, start, offset, size)),
        *(jnp.asarray(x) for x in (window, width)),
    )
    return Case(arguments, want, accepted, owner)
