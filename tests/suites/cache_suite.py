"""The cache contract, checked for any model: chunked prefill, steps, ragged batches, overflow.

Each check takes (model, params, tokens int32 [B, T]) and raises AssertionError. `tolerance` is on
logits, relative to their standard deviation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, tokens, segment_ids, cache):
    return model.apply({"params": params}, tokens, segment_ids=segment_ids, cache=cache)


def forward(model, params, tokens, segment_ids=None):
    """Logits of one full forward pass without a cache."""
    return np.asarray(_apply(model, params, tokens, segment_ids, None).logits)


def in_chunks(model, params, tokens, sizes, segment_ids=None, max_length=None):
    """(logits of all tokens, cache after them), fed in chunks of these sizes."""
    assert sum(sizes) == tokens.shape[1]
    cache = model.init_cache(params, tokens.shape[0], max_length or tokens.shape[1])
    logits, at = [], 0
    for size in sizes:
        part = slice(at, at + size)
        ids = None if segment_ids is None else segment_ids[:, part]
        out = _apply(model, params, tokens[:, part], ids, cache)
        logits.append(np.asarray(out.logits))
        cache, at = out.cache, at + size
    return np.concatenate(logits, axis=1), cache


def assert_close(got, want, tolerance, label):
    """Largest difference over the standard deviation of `want`; NaN fails."""
    error = np.max(np.abs(got - want)) / np.std(want)
    assert error <= tolerance, f"{label}: largest relative difference {error:.2e} > {tolerance:.0e}"


def check_every_split(model, params, tokens, tolerance=2e-5):
    """Prefill of the first t tokens and one-token steps for the rest, for every t.

    The prefill is padded to one length, so that two shapes are compiled and not T; chunks without
    padding are the matter of `check_uneven_chunks`.
    """
    want = forward(model, params, tokens)
    batch, length = tokens.shape
    empty = model.init_cache(params, batch, length)
    for first in range(1, length + 1):
        real = jnp.broadcast_to(jnp.arange(length) < first, tokens.shape).astype(jnp.int32)
        out = _apply(model, params, tokens, real, empty)
        logits = [np.asarray(out.logits)[:, :first]]
        for t in range(first, length):
            out = _apply(model, params, tokens[:, t : t + 1], None, out.cache)
            logits.append(np.asarray(out.logits))
        assert_close(np.concatenate(logits, 1), want, tolerance, f"prefill {first} of {length}")


def check_every_split_in_one_batch(model, params, tokens, tolerance=2e-5):
    """The same for longer rows: row b of one batch has a prefill of b + 1 tokens.

    `tokens` is one row [1, T]. Rows step on until all are whole; those that are get padding, which
    must leave them alone.
    """
    length = tokens.shape[1]
    want = forward(model, params, tokens)[0]
    rows = jnp.repeat(tokens, length, axis=0)
    first = jnp.arange(length) + 1
    real = (jnp.arange(length)[None, :] < first[:, None]).astype(jnp.int32)
    cache = model.init_cache(params, length, length)
    out = _apply(model, params, rows, real, cache)
    prefill = np.asarray(out.logits)
    for b in range(length):
        assert_close(prefill[b, : b + 1], want[: b + 1], tolerance, f"prefill of {b + 1}")
    for step in range(length - 1):
        place = first + step
        more = (place < length).astype(jnp.int32)
        new = tokens[0, jnp.minimum(place, length - 1)]
        out = _apply(model, params, new[:, None], more[:, None], out.cache)
        logits = np.asarray(out.logits)[:, 0]
        for b in range(length - 1 - step):
            assert_close(logits[b], want[b + 1 + step], 5 * tolerance, f"{b + 1} + step {step}")


def check_uneven_chunks(
    model, params, tokens, sizes, segment_ids=None, max_length=None, tolerance=2e-5
):
    """Chunks of given sizes; with `segment_ids`, documents may be cut anywhere by them."""
    want = forward(model, params, tokens, segment_ids)
    keep = np.ones(tokens.shape, bool) if segment_ids is None else np.asarray(segment_ids) != 0
    got, _ = in_chunks(model, params, tokens, sizes, segment_ids, max_length)
    assert_close(got[keep], want[keep], tolerance, f"chunks {sizes}, max_length {max_length}")


def check_ragged_batch(model, params, tokens, lengths, steps=3, tolerance=2e-5):
    """Rows of different lengths in one right-padded batch, then common steps: each row as alone.

    Row b holds tokens[b, :lengths[b]] as its prompt and the next `steps` tokens after it. Padding
    ids are arbitrary; changing them must not change a bit.
    """
    longest = max(lengths)
    assert longest + steps <= tokens.shape[1]
    real = jnp.arange(longest)[None, :] < jnp.asarray(lengths)[:, None]
    results = []
    for filler in (0, 1):
        prompt = jnp.where(real, tokens[:, :longest], filler)
        cache = model.init_cache(params, len(lengths), longest + steps)
        out = _apply(model, params, prompt, real.astype(jnp.int32), cache)
        logits = [[np.asarray(out.logits)[b, :n]] for b, n in enumerate(lengths)]
        for step in range(steps):
            new = jnp.stack([tokens[b, n + step] for b, n in enumerate(lengths)])[:, None]
            out = _apply(model, params, new, None, out.cache)
            for b in range(len(lengths)):
                logits[b].append(np.asarray(out.logits)[b])
        results.append([np.concatenate(row) for row in logits])
    want = forward(model, params, tokens[:, : longest + steps])
    for b, n in enumerate(lengths):
        np.testing.assert_array_equal(results[0][b], results[1][b], f"padding is read, row {b}")
        assert_close(results[0][b], want[b, : n + steps], tolerance, f"row {b} of length {n}")


def check_overflow_is_loud(model, params, tokens):
    """One row past max_length gives NaN from then on; the other row is not disturbed."""
    length = tokens.shape[1]
    assert tokens.shape[0] == 2
    cache = model.init_cache(params, 2, length)
    lengths = jnp.asarray([length, length - 2])
    real = (jnp.arange(length)[None, :] < lengths[:, None]).astype(jnp.int32)
    out = _apply(model, params, tokens, real, cache)
    assert np.isfinite(out.logits[0]).all(), "a row exactly full is not an overflow"
    want = forward(model, params, tokens[1:])
    for step in range(2):
        new = jnp.stack([tokens[0, 0], tokens[1, length - 2 + step]])[:, None]
        out = _apply(model, params, new, None, out.cache)
        assert np.isnan(out.logits[0]).all(), "a row ran past max_length silently"
        assert_close(np.asarray(out.logits)[1], want[0, length - 2 + step][None], 2e-5, "row 1")
