"""The cache contract for Multiscreen: rings smaller than the row, ragged rows, cut documents."""

import functools

import jax
import jax.numpy as jnp

from multiscreen_jax.models.multiscreen import Multiscreen, MultiscreenConfig
from tests.suites import cache_suite

TOKENS = jax.random.randint(jax.random.key(1), (2, 23), 0, 61)


@functools.cache
def _model(window_threshold):
    """Windows 2 to window_threshold + 1, and tiles loud and open enough to matter."""
    model = Multiscreen(
        MultiscreenConfig(
            vocab_size=61,
            model_dim=16,
            num_layers=2,
            num_heads=3,
            window_threshold=window_threshold,
        )
    )
    params = jax.jit(model.init)(jax.random.key(0), TOKENS[:, :4])["params"]
    tiles = params["layers"]["tiles"]
    louder = {"gate": 20 * tiles["gate"], "output": 500 * tiles["output"]}
    tiles = {**tiles, **louder, "logit_width": tiles["logit_width"] + 3}
    return model, {**params, "layers": {"tiles": tiles}}


def test_every_split():
    cache_suite.check_every_split(*_model(6.0), TOKENS[:, :12])


def test_documents_cut_by_chunks():
    segment_ids = jnp.asarray([[1] * 5 + [2] * 9 + [3] * 6 + [0] * 3, [1] * 20 + [2] * 3])
    cache_suite.check_uneven_chunks(*_model(6.0), TOKENS, (7, 1, 7, 1, 7), segment_ids)


def test_ragged_batch():
    cache_suite.check_ragged_batch(*_model(6.0), TOKENS, (11, 4))


def test_overflow_is_loud():
    """Only where a window is longer than max_length: shorter rings never lose what is read."""
    cache_suite.check_overflow_is_loud(*_model(256.0), TOKENS[:, :6])
