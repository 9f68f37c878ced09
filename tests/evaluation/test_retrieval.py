"""The ABCDigits grid: a model that knows, one that does not, and a real one."""

import csv
import re

import jax
import numpy as np
import pytest

from multiscreen_jax import generate
from multiscreen_jax.data import abcdigits
from multiscreen_jax.data.tokenizers import ByteTokenizer, CharacterTokenizer
from multiscreen_jax.evaluation import retrieval_grid, write_csv
from multiscreen_jax.evaluation.figures import plot_positions, plot_retrieval
from multiscreen_jax.models import Multiscreen, MultiscreenConfig

TOKENIZER = CharacterTokenizer(abcdigits.ALPHABET, ends_documents=False)


def solver(tokenizer, reads=10**9):
    """A stand-in for generate: answers right if the line is among the last `reads` characters."""

    def generate(model, params, prompts, max_new_tokens):
        answers = []
        for prompt in prompts:
            text = tokenizer.decode(prompt)
            found = re.search(rf"{text[-2]}=(\d+)\n", text[-reads:])
            answer = found.group(1) if found else "0" * max_new_tokens
            answers.append(tokenizer.encode(answer)[:max_new_tokens])
        assert len({len(answer) for answer in answers}) == 1
        return np.stack(answers)

    return generate


def grid(**settings):
    defaults = {"depths": (0.1, 0.9), "unit": "lines", "trials": 5, "generate": solver(TOKENIZER)}
    return retrieval_grid(None, None, TOKENIZER, **{"lengths": (50, 80), **defaults, **settings})


def test_a_perfect_model_is_right_everywhere():
    rows = grid()
    assert [(row["length"], row["depth"]) for row in rows] == [
        (50, 0.1), (50, 0.9), (80, 0.1), (80, 0.9)
    ]  # fmt: skip
    for row in rows:
        assert row["correct"] == row["trials"] == 5
        assert row["exact_match"] == 1.0
        assert row["prompt_tokens"] == 9 * row["length"] - 7


def test_a_short_memory_is_right_where_the_line_is_near():
    rows = grid(generate=solver(TOKENIZER, reads=200))
    assert [row["exact_match"] for row in rows] == [0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_do_not_matter(batch_size):
    seen = []
    rows = grid(batch_size=batch_size, lengths=(60,), progress=seen.append)
    assert [row["correct"] for row in rows] == [5, 5]
    assert seen == rows


def test_lengths_in_tokens_and_other_digits():
    rows = grid(lengths=(700,), unit="tokens", digits=4)
    assert {row["exact_match"] for row in rows} == {1.0}
    # The generator stops at the first line that reaches the length; answer and newline are cut.
    assert all(700 - 5 <= row["prompt_tokens"] < 700 + 2 for row in rows)


def test_tokens_unknown_to_the_tokenizer_are_wrong_answers():
    def unknown(model, params, prompts, max_new_tokens):
        return np.full((len(prompts), max_new_tokens), 300)

    assert {row["correct"] for row in grid(generate=unknown)} == {0}


@pytest.mark.slow
def test_a_real_model_with_the_librarys_generate():
    config = MultiscreenConfig(
        vocab_size=256, model_dim=8, num_layers=1, num_heads=2, key_dim=4, value_dim=4
    )
    model = Multiscreen(config)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
    tokenizer = ByteTokenizer()
    text = abcdigits.make_by_lines(50, 0.5)[0]
    prompt, _ = abcdigits.split_answer(text)
    answer = tokenizer.decode(generate(model, params, tokenizer.encode(prompt), max_new_tokens=6))

    def check(model, params, prompts, max_new_tokens):
        new = generate(model, params, prompts, max_new_tokens=max_new_tokens)
        assert tokenizer.decode(new[0]) == answer
        return new

    settings = {"unit": "lines", "trials": 1}
    (row,) = retrieval_grid(model, params, tokenizer, (50,), (0.5,), generate=check, **settings)
    assert row["correct"] == int(answer == text[-6:])
    assert retrieval_grid(model, params, tokenizer, (50,), (0.5,), **settings) == [row]


def test_csv_and_figures(tmp_path):
    rows = grid(generate=solver(TOKENIZER, reads=200))
    write_csv(rows, tmp_path / "grid.csv")
    with (tmp_path / "grid.csv").open() as stream:
        read = list(csv.DictReader(stream))
    assert [float(row["exact_match"]) for row in read] == [row["exact_match"] for row in rows]
    figure = plot_retrieval(rows)
    assert [text.get_text() for text in figure.axes[0].texts] == ["0", "0", "100", "100"]
    figure.savefig(tmp_path / "grid.png")
    positions = [
        {"start": 0, "end": 8, "tokens": 8, "loss": 1.0, "perplexity": 2.7},
        {"start": 8, "end": 16, "tokens": 8, "loss": 1.1, "perplexity": 3.0},
    ]
    plot_positions(positions, trained_length=8).savefig(tmp_path / "positions.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 3000 for name in ("grid", "positions"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unit": "words"}, "tokens, lines"),
        ({"lengths": ()}, "lengths is empty"),
        ({"depths": ()}, "depths is empty"),
        ({"depths": (1.5,)}, "depth is 1.5"),
        ({"lengths": (10,)}, "n_lines is 10"),
        ({"trials": 0}, "trials is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        grid(**settings)
