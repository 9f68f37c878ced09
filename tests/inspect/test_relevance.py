"""Maps against recorded references, counts against maps, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax import inspect
from multiscreen_jax.inspect.relevance import count_layer
from multiscreen_jax.models import Transformer, create
from tests.inspect.models import dense_counts, packed_rows, tiny
from tests.models.golden_case import load_case


def test_maps_are_the_recorded_ones():
    case = load_case("nonpow2_T37")
    for row, tokens in enumerate(case.tokens):
        maps = inspect.relevance_maps(case.model, case.params, tokens)
        assert maps.relevance.dtype == np.float32
        for layer in range(case.num_layers):
            aux = {name: case.expected[f"aux/{layer}/{name}"] for name in ("relevance", "w", "r")}
            np.testing.assert_allclose(maps.relevance[layer], aux["relevance"][row], atol=1e-5)
            np.testing.assert_allclose(maps.window[layer], aux["w"], rtol=1e-6)
            np.testing.assert_allclose(maps.width[layer], aux["r"], rtol=1e-6)


def test_layers_are_chosen_in_the_order_given():
    model, params = tiny()
    tokens, _ = packed_rows(1, 40)
    whole = inspect.relevance_maps(model, params, tokens)
    last = inspect.relevance_maps(model, params, tokens[0], layers=[-1, 0])
    assert whole.layers == (0, 1)
    assert last.layers == (1, 0)
    np.testing.assert_array_equal(last.relevance, whole.relevance[::-1])
    np.testing.assert_array_equal(last.window, whole.window[::-1])


@pytest.mark.parametrize("packed", [False, True])
def test_counts_are_those_of_whole_maps(packed):
    model, params = tiny()
    tokens, segments = packed_rows(3, 300)
    segments = segments if packed else None
    expected = dense_counts(model, params, tokens, segments)
    found = inspect.acceptance(model, params, tokens, segments)
    for name, counts in expected.items():
        np.testing.assert_array_equal(getattr(found, name), counts, err_msg=name)
    assert found.queries == (tokens.size if segments is None else (segments > 0).sum())
    assert np.isinf(found.window).sum() == 2
    assert 0 < expected["accepted"].sum() < expected["in_window"].sum()  # a test worth having


@pytest.mark.parametrize("packed", [False, True])
def test_share_accepted_of_maps_and_counts_agree(packed):
    model, params = tiny()
    tokens, segments = packed_rows(1, 40)
    segments = segments if packed else None
    maps = inspect.relevance_maps(model, params, tokens, segment_ids=segments)
    counts = inspect.acceptance(model, params, tokens, segments)
    np.testing.assert_array_equal(maps.share_accepted(), counts.share_accepted())
    np.testing.assert_array_equal(maps.in_window().sum((2, 3)), counts.in_window)


def test_memory_of_counts_is_linear_in_the_length():
    def temporary_bytes(length):
        q = jax.ShapeDtypeStruct((1, length, 2, 4), jnp.float32)
        tile = jax.ShapeDtypeStruct((2,), jnp.float32)
        return (
            jax.jit(count_layer).lower(q, q, tile, tile).compile().memory_analysis()
        ).temp_size_in_bytes

    short, long = temporary_bytes(2048), temporary_bytes(8192)
    assert long < 4.5 * short
    assert long < 8192**2 / 16


def test_other_models_are_refused():
    model = create("transformer-8m", vocab_size=16, num_layers=1)[0]
    assert isinstance(model, Transformer)
    for function in (inspect.relevance_maps, inspect.acceptance, inspect.health):
        with pytest.raises(
            TypeError, match=f"{function.__name__} needs a Multiscreen.*Transformer"
        ):
            function(model, {}, [1, 2])


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([[1, 2], [3, 4]], {}, r"one prompt.*\(2, 2\)"),
        ([0.5, 1.0], {}, "integers"),
        ([1, 50], {}, r"\[0, 50\)"),
        ([1, 2], {"layers": [2]}, "0 to 1"),
        ([1, 2], {"layers": []}, "empty"),
        ([1, 2], {"segment_ids": [1, 1, 1]}, "shape of tokens"),
        (np.zeros(6000, int), {}, r"acceptance"),
    ],
)
def test_bad_arguments_of_maps(tokens, options, message):
    model, params = tiny()
    with pytest.raises(ValueError, match=message):
        inspect.relevance_maps(model, params, tokens, **options)
