"""The needle grid: a reader that finds everything, one that confuses keys, and a real model."""

import re

import jax
import numpy as np
import pytest

from multiscreen_jax.data.needle import Haystack
from multiscreen_jax.data.tokenizers import ByteTokenizer, CharacterTokenizer
from multiscreen_jax.evaluation import needle_grid
from multiscreen_jax.evaluation.figures import plot_retrieval
from multiscreen_jax.models import Multiscreen, MultiscreenConfig
from tests.data.test_needle import NEEDLE, sentences

TOKENIZER = ByteTokenizer()
HAYSTACK = Haystack("made up", sentences(800))


def reader(pick, reads=10**9, space=" "):
    """A stand-in for generate that says the number pick(needles, key) of what it has read."""

    def generate(model, params, prompts, max_new_tokens):
        answers = []
        for prompt in prompts:
            text = TOKENIZER.decode(prompt)
            key = re.search(r"number for (\S+) mentioned", text).group(1)
            number = pick(NEEDLE.findall(text[-reads:]), key) or "0"
            answers.append(TOKENIZER.encode((space + number).ljust(max_new_tokens, "."))[:12])
        return np.stack(answers)[:, :max_new_tokens]

    return generate


def of_key(needles, key):
    return dict(needles).get(key)


def first(needles, key):
    return needles[0][1] if needles else None


def grid(**settings):
    defaults = {"depths": (0.1, 0.9), "trials": 6, "batch_size": 4, "generate": reader(of_key)}
    settings = {"lengths": (1500, 2500), **defaults, **settings}
    return needle_grid(None, None, TOKENIZER, HAYSTACK, **settings)


@pytest.mark.parametrize("keys", [1, 4])
@pytest.mark.parametrize("space", [" ", ""])
def test_a_perfect_reader_is_right_everywhere(keys, space):
    seen = []
    rows = grid(keys=keys, generate=reader(of_key, space=space), progress=seen.append)
    assert seen == rows
    assert [(row["length"], row["depth"]) for row in rows] == [
        (1500, 0.1), (1500, 0.9), (2500, 0.1), (2500, 0.9)
    ]  # fmt: skip
    for row in rows:
        assert row["keys"] == keys
        assert row["correct"] == row["trials"] == 6
        assert row["exact_match"] == 1.0
        assert 0.97 * row["length"] < row["prompt_tokens"] + 8 <= row["length"]


def test_a_reader_that_confuses_keys_fails_the_multi_key_task_alone():
    assert {row["exact_match"] for row in grid(generate=reader(first))} == {1.0}
    confused = grid(generate=reader(first), keys=8)
    assert all(row["exact_match"] < 1 for row in confused)


def test_a_short_memory_is_right_where_the_needle_is_near():
    rows = grid(generate=reader(of_key, reads=900), lengths=(2500,))
    assert [row["exact_match"] for row in rows] == [0.0, 1.0]
    figure = plot_retrieval(rows)
    assert [text.get_text() for text in figure.axes[0].texts] == ["0", "100"]


@pytest.mark.slow
def test_a_real_model_with_the_librarys_generate():
    config = MultiscreenConfig(
        vocab_size=256, model_dim=8, num_layers=1, num_heads=2, key_dim=4, value_dim=4
    )
    model = Multiscreen(config)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
    (row,) = needle_grid(model, params, TOKENIZER, HAYSTACK, (600,), (0.5,), trials=2)
    assert row["correct"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lengths": ()}, "lengths is empty"),
        ({"depths": (2.0,)}, "depth is 2.0"),
        ({"trials": 0}, "trials is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"keys": 0}, "keys is 0"),
        ({"lengths": (64,)}, "length is 64; allowed: at least"),
    ],
)
def test_bad_arguments_are_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        grid(**settings)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_lacks_a_character_names_it():
    with pytest.raises(ValueError, match="is not in the alphabet of 2 characters"):
        needle_grid(None, None, CharacterTokenizer("ab"), HAYSTACK, (2000,), trials=1)
