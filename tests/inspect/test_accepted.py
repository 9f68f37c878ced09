"""Accepted keys against whole maps, documents, the future, memory, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax import inspect
from multiscreen_jax.inspect.accepted import _Finder, find_layer
from multiscreen_jax.jitted import jitted
from multiscreen_jax.models import Multiscreen, create
from tests.inspect.models import packed_rows, tiny
from tests.marks import slow_unless

LENGTH, MOST = 300, 12


def check_against_maps(found, maps):
    """The same keys are accepted and counted, and the kept ones are the strongest."""
    relevance = maps.relevance
    np.testing.assert_array_equal(found.accepted, (relevance > 0).sum(-1))
    np.testing.assert_allclose(found.total_relevance, relevance.sum(-1), rtol=2e-5, atol=1e-6)
    most = found.position.shape[-1]
    kept = found.relevance > 0
    np.testing.assert_array_equal(kept.sum(-1), np.minimum(found.accepted, most))
    np.testing.assert_array_equal(found.position == -1, ~kept)
    np.testing.assert_array_equal(found.relevance[~kept], 0)
    expected = np.take_along_axis(relevance, np.maximum(found.position, 0), axis=-1)
    np.testing.assert_allclose(found.relevance[kept], expected[kept], atol=1e-6)
    strongest = -np.sort(-relevance, axis=-1)[..., :most]
    np.testing.assert_allclose(found.relevance[..., : strongest.shape[-1]], strongest, atol=1e-6)
    for keys, real in zip(found.position.reshape(-1, most), kept.reshape(-1, most), strict=True):
        assert len(set(keys[real])) == real.sum()


@pytest.mark.parametrize("packed", slow_unless((True,), (False, True)))
def test_keys_are_those_of_whole_maps(packed):
    model, params = tiny()
    tokens, segments = (x[2] for x in packed_rows(3, LENGTH))
    segments = segments if packed else None
    maps = inspect.relevance_maps(model, params, tokens, segment_ids=segments)
    found = inspect.accepted_keys(model, params, tokens, MOST, segments)
    check_against_maps(found, maps)
    assert found.relevance.dtype == found.total_relevance.dtype == np.float32
    assert found.position.dtype == found.accepted.dtype == np.int32
    assert (found.accepted > MOST).any()  # some are left out
    assert found.silent().any()
    assert np.isinf(found.window).sum() == 2
    counts = inspect.acceptance(model, params, tokens, segments)
    np.testing.assert_array_equal(found.in_window().sum(-1), counts.in_window)
    np.testing.assert_array_equal(found.share_accepted(), counts.share_accepted())
    rejected = 1 - counts.accepted.sum() / counts.in_window.sum()
    np.testing.assert_allclose(found.share_rejected(), rejected)
    np.testing.assert_array_equal(found.window, counts.window)
    np.testing.assert_array_equal(found.width, counts.width)


def test_all_keys_of_a_short_prompt():
    model, params = tiny()
    tokens = packed_rows(1, 40)[0][0]
    maps = inspect.relevance_maps(model, params, tokens)
    found = inspect.accepted_keys(model, params, tokens, most=64)  # more than there are
    check_against_maps(found, maps)
    for layer, head, query in np.ndindex(found.accepted.shape):
        positions, relevance = found.keys(layer, head, query)
        row = maps.relevance[layer, head, query]
        assert set(positions) == set(np.flatnonzero(row))
        assert (np.diff(relevance) <= 0).all()


def test_bf16_keys_are_those_of_whole_maps():
    model, params = tiny()
    model = Multiscreen(dataclasses.replace(model.config, dtype="bfloat16"))
    tokens = packed_rows(1, LENGTH)[0]
    maps = inspect.relevance_maps(model, params, tokens)
    check_against_maps(inspect.accepted_keys(model, params, tokens, MOST), maps)


def test_the_future_changes_nothing():
    model, params = tiny()
    tokens = packed_rows(1, LENGTH)[0][0]
    changed = tokens.copy()
    changed[200:] = (changed[200:] + 7) % 50
    first, second = (inspect.accepted_keys(model, params, x, MOST) for x in (tokens, changed))
    for name in ("position", "relevance", "accepted", "total_relevance"):
        before, after = getattr(first, name), getattr(second, name)
        np.testing.assert_array_equal(before[:, :, :200], after[:, :, :200], err_msg=name)
    assert (first.position[:, :, 200:] != second.position[:, :, 200:]).any()
    assert (first.position <= np.arange(LENGTH)[:, None]).all()


def test_of_equal_keys_the_nearest_come_first():
    q = jnp.zeros((1, LENGTH, 1, 4)).at[..., 0].set(1)
    found = find_layer(q, q, jnp.array([np.inf]), jnp.array([0.5]), jnp.ones((1, LENGTH), int), 3)
    np.testing.assert_array_equal(found["position"][0, 0, [0, 150, 299]], [
        [0, -1, -1], [150, 149, 148], [299, 298, 297]
    ])  # fmt: skip
    np.testing.assert_array_equal(found["accepted"][0, 0], np.arange(LENGTH) + 1)


def test_memory_is_linear_in_the_length():
    def temporary_bytes(length):
        q = jax.ShapeDtypeStruct((1, length, 2, 4), jnp.float32)
        tile = jax.ShapeDtypeStruct((2,), jnp.float32)
        segments = jax.ShapeDtypeStruct((1, length), jnp.int32)
        lowered = jax.jit(find_layer, static_argnums=5).lower(q, q, tile, tile, segments, 16)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    short, long = temporary_bytes(2048), temporary_bytes(8192)
    assert long < 4.5 * short
    assert long < 8192**2 / 16


def test_one_compiled_function_for_all_calls():
    model, params = tiny()
    assert jitted(_Finder(3), model, params) is jitted(_Finder(3), model, params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": [[1, 2], [3, 4]]}, r"one prompt.*\(2, 2\)"),
        ({"tokens": [1, 50]}, r"\[0, 50\)"),
        ({"most": 0}, "integer >= 1, got 0"),
        ({"most": 2.0}, "integer >= 1, got 2.0"),
        ({"segment_ids": [1, 1, 1]}, "shape of tokens"),
    ],
)
def test_bad_arguments(options, message):
    model, params = tiny()
    with pytest.raises(ValueError, match=message):
        inspect.accepted_keys(model, params, **{"tokens": [1, 2], **options})


def test_other_models_are_refused():
    model = create("transformer-8m", vocab_size=16, num_layers=1)[0]
    with pytest.raises(TypeError, match=r"accepted_keys needs a Multiscreen.*Transformer"):
        inspect.accepted_keys(model, {}, [1, 2])
