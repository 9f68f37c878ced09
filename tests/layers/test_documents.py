"""What a document is, said once: `layers.documents`, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multiscreen_jax as mj
from multiscreen_jax.layers.documents import documents

ROWS = [
    ([3, 3, 0, 0, 7, 7, 1], [1, 1, 0, 0, 2, 2, 3]),
    ([0, 5, 5, 9, 0, 0, 0], [0, 1, 1, 2, 0, 0, 0]),
    ([1, 1, 0, 0, 1, 1, 2], [1, 1, 0, 0, 2, 2, 3]),
    ([0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]),
]


def test_documents_are_numbered_stretches():
    given, want = (np.array(x, np.int32) for x in zip(*ROWS, strict=True))
    np.testing.assert_array_equal(documents(jnp.asarray(given)), want)
    assert documents(None) is None


@pytest.fixture(scope="module")
def model():
    model, _ = mj.models.create("retnet-tiny", vocab_size=11, num_layers=1)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))["params"]


def test_padding_inside_a_document_is_refused(model):
    tokens, ids = jnp.ones((2, 6), jnp.int32), jnp.array([[1] * 6, [1, 1, 0, 0, 1, 1]])
    with pytest.raises(ValueError, match="1 comes back in row 1 after another one or after padd"):
        model[0].apply({"params": model[1]}, tokens, ids)
    with pytest.raises(ValueError, match="1 comes back in row 1 after another one or after padd"):
        mj.losses.next_token(*model, {"tokens": tokens, "segment_ids": ids})


def test_padding_before_tokens_has_no_place_in_a_cache(model):
    model, params = model
    tokens, ids = jnp.ones((2, 4), jnp.int32), jnp.array([[1] * 4, [1, 0, 2, 2]])
    cache = model.init_cache(params, 2, 9)

    def call(ids):
        return model.apply({"params": params}, tokens, ids, cache)

    with pytest.raises(ValueError, match="padding, 0, at its end alone; row 1 has tokens after"):
        call(ids)
    logits = jax.jit(call)(ids).logits
    assert np.isfinite(logits[0]).all()
    assert np.isnan(logits[1]).all()
    assert np.isfinite(jax.jit(call)(ids.at[1].set(jnp.array([1, 2, 2, 0]))).logits).all()


def test_an_id_that_comes_back_in_a_chunk_does_not_continue_the_cache(model):
    """Row 0 reads nothing of the cache in its last two tokens, whatever their id."""
    model, params = model
    tokens = jnp.arange(14).reshape(2, 7) % 11
    start = model.apply({"params": params}, tokens[:, :3], cache=model.init_cache(params, 2, 9))
    call = jax.jit(lambda ids: model.apply({"params": params}, tokens[:, 3:], ids, start.cache))
    got, want = (call(jnp.array([[1, 2, *last], [1] * 4])).logits for last in ((1, 1), (3, 3)))
    np.testing.assert_array_equal(got, want)
