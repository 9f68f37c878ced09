"""The cache contract for Multiscreen: rings smaller than the row, ragged rows, cut documents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax.models.multiscreen import Multiscreen, MultiscreenConfig
from pallas_kernels.screening.summaries import BLOCK_SLOTS, summarize
from tests.marks import slow_unless
from tests.suites import cache_suite

TOKENS = jax.random.randint(jax.random.key(1), (2, 23), 0, 61)


@functools.cache
def _model(window_threshold, block_summaries=False):
    """Windows 2 to window_threshold + 1, and tiles loud and open enough to matter."""
    model = Multiscreen(
        MultiscreenConfig(
            vocab_size=61,
            model_dim=16,
            num_layers=2,
            num_heads=3,
            window_threshold=window_threshold,
            block_summaries=block_summaries,
        )
    )
    params = jax.jit(model.init)(jax.random.key(0), TOKENS[:, :4])["params"]
    tiles = params["layers"]["tiles"]
    louder = {"gate": 20 * tiles["gate"], "output": 500 * tiles["output"]}
    tiles = {**tiles, **louder, "logit_width": tiles["logit_width"] + 3}
    return model, {**params, "layers": {"tiles": tiles}}


@pytest.mark.parametrize("block_summaries", slow_unless((False,), (False, True)))
def test_every_split(block_summaries):
    cache_suite.check_every_split(*_model(6.0, block_summaries), TOKENS[:, :12])


@pytest.mark.slow
def test_documents_cut_by_chunks():
    segment_ids = jnp.asarray([[1] * 5 + [2] * 9 + [3] * 6 + [0] * 3, [1] * 20 + [2] * 3])
    cache_suite.check_uneven_chunks(*_model(6.0), TOKENS, (7, 1, 7, 1, 7), segment_ids)


@pytest.mark.parametrize("block_summaries", slow_unless((False,), (False, True)))
def test_ragged_batch(block_summaries):
    cache_suite.check_ragged_batch(*_model(6.0, block_summaries), TOKENS, (11, 4))


@pytest.mark.slow
def test_summaries_are_those_of_the_keys_in_the_cache():
    """Rings overwrite their slots; a summary that missed a write would reject what it must not."""
    model, params = _model(6.0, block_summaries=True)
    cache = model.init_cache(params, 2, 64)
    for start, stop in ((0, 9), (9, 10), (10, 23)):
        out = model.apply({"params": params}, TOKENS[:, start:stop], cache=cache)
        cache = out.cache
    (rings,) = cache.parts["layers"]
    blocks = -(-rings.keys.shape[1] // BLOCK_SLOTS)  # what follows is padding
    for kept, fresh in zip(rings.summaries, summarize(rings.keys), strict=True):
        np.testing.assert_array_equal(kept[:, :blocks], fresh[:, :blocks])


@pytest.mark.slow
def test_overflow_is_loud():
    """Only where a window is longer than max_length: shorter rings never lose what is read."""
    cache_suite.check_overflow_is_loud(*_model(256.0), TOKENS[:, :6])
