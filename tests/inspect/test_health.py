"""Health metrics against dense counts, and that asking again does not compile again."""

import copy

import numpy as np

from multiscreen_jax import inspect
from multiscreen_jax.inspect.relevance import _counts
from multiscreen_jax.jitted import jitted
from tests.inspect.models import WINDOWS, dense_counts, packed_rows, tiny

LENGTH = 40


def test_numbers_are_those_of_a_dense_count():
    model, params = tiny()
    tokens, _ = packed_rows(2, LENGTH)
    expected = dense_counts(model, params, tokens, None)
    found = inspect.health(model, params, tokens)
    for layer in range(2):
        pairs, accepted, silent = (
            expected[name][layer] for name in ("in_window", "accepted", "silent_queries")
        )
        rejected = 1 - accepted.sum() / pairs.sum()
        np.testing.assert_allclose(found[f"rejected/layer_{layer}"], rejected)
        np.testing.assert_allclose(found[f"silent/layer_{layer}"], silent.sum() / (4 * tokens.size))
        assert found[f"dead_tiles/layer_{layer}"] == (accepted == 0).sum()
    assert len(found) == 10


def test_a_tile_is_dead_when_it_accepts_nothing():
    model, params = tiny()
    tokens, _ = packed_rows(2, LENGTH)
    params = copy.deepcopy(params)
    params["layers"]["tiles"]["logit_width"][1, :] = -20  # only a key equal to the query passes
    found = inspect.health(model, params, tokens)
    assert found["dead_tiles/layer_1"] == 4
    assert found["rejected/layer_1"] == 1
    assert found["silent/layer_1"] == 1
    assert found["dead_tiles/layer_0"] < 4


def test_quantiles_are_values_of_tiles():
    model, params = tiny()
    found = inspect.health(model, params, packed_rows(2, LENGTH)[0])
    window = found["window/layer_1"]
    np.testing.assert_allclose(window[[0, 3]], WINDOWS[1][[0, 2]], rtol=1e-5)
    assert np.isinf(window[4])
    np.testing.assert_allclose(found["width/layer_0"][[0, 4]], [0.02, 0.9], rtol=1e-5)


def test_one_compiled_function_for_all_calls():
    model, params = tiny()
    tokens, _ = packed_rows(2, LENGTH)
    inspect.health(model, params, tokens)
    function = jitted(_counts, model, params)
    before = function._cache_size()
    inspect.health(model, copy.deepcopy(params), tokens[::-1].copy())
    inspect.health(type(model)(model.config), params, tokens)
    assert jitted(_counts, model, params) is function
    assert function._cache_size() == before
