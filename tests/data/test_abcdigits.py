import collections
import hashlib
import json

import numpy as np
import pytest

from multiscreen_jax.data import AbcDigitsConfig, DataConfig, open_pipeline
from multiscreen_jax.data.abcdigits import ALPHABET, make_by_lines, make_by_tokens, split_answer
from tests.goldens import golden_path

GOLDENS = json.loads(golden_path("multiscreen/abcdigits.json").read_text())


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden["fn"])
def test_benchmark_texts_equal_the_authors(golden):
    depth, digits, trials = golden["depth"], golden["n_digits"], golden["n_trials"]
    if golden["fn"] == "generate_by_line_count":
        texts = make_by_lines(golden["n_lines"], depth, digits, trials)
    else:
        texts = make_by_tokens(golden["n_tokens"], depth, len, digits, trials)
    assert [hashlib.sha256(text.encode()).hexdigest() for text in texts] == golden["sha256"]


def test_benchmark_structure():
    for text in make_by_lines(200, 0.3, 6, 3):
        prompt, answer = split_answer(text)
        lines = text.split("\n")
        assert len(lines) == 200
        assert prompt.endswith(lines[-1][:2])
        counts = collections.Counter(line[0] for line in lines)
        assert counts[lines[-1][0]] == 2
        assert len(counts) == 26
        assert lines[int(198 * 0.3)] == lines[-1]
        assert answer == lines[-1][2:]
    assert make_by_lines(60, 0.5, n_trials=1) == make_by_lines(60, 0.5, n_trials=4)[:1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((49, 0.5), "n_lines is 49; allowed: an integer >= 50"),
        ((50, 1.5), "depth is 1.5; allowed: a number from 0 to 1"),
        ((50, 0.5, 1), "n_digits is 1; allowed: an integer from 2 to 15"),
        ((50, 0.5, 6, 0), "n_trials is 0"),
    ],
)
def test_bad_benchmark_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_by_lines(*arguments)


def test_too_few_tokens():
    with pytest.raises(ValueError, match="n_tokens is 486; allowed: more than 486"):
        make_by_tokens(486, 0.5, len)
    assert len(make_by_tokens(487, 0.5, len)[0]) >= 486


def open_stream(length=150, tokenizer="characters", split="train", **settings):
    config = DataConfig(
        source="abcdigits",
        tokenizer=tokenizer,
        sequence_length=length,
        batch_size=8,
        abcdigits=AbcDigitsConfig(**settings),
    )
    return open_pipeline(config, split)


def read_rows(pipeline, batches=4):
    """(lines, loss mask of every character but the first) of the stream's rows."""
    for index in range(batches):
        batch = pipeline.batch(index)
        for tokens, mask in zip(batch["tokens"], batch["loss_mask"], strict=True):
            yield pipeline.tokenizer.decode(tokens), mask


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("length", [150, 151, 152, 160])
def test_rows_are_lines_with_one_number_per_letter(share, length):
    pipeline = open_stream(length, halving_share=share, num_digits=4, max_letters=8)
    assert pipeline.vocab_size == len(ALPHABET) == 38
    assert pipeline.num_batches is None
    for text, mask in read_rows(pipeline):
        assert len(text) == length + 1
        numbers, weights = {}, []
        for line in text.split("\n"):
            known = line[0] in numbers if line else False
            weights += [0.2, 0.2] + [1.0 if known else 0.2] * 4 + [0.2]
            if len(line) == 6:
                assert numbers.setdefault(line[0], line[2:]) == line[2:]
                assert line[1] == "="
                assert 1000 <= int(line[2:]) <= 9999
        assert len(set(numbers.values())) == len(numbers) <= 8
        np.testing.assert_array_equal(mask, np.float32(weights[1 : length + 1]))


def test_halving_rows_ask_for_a_letter_shown_once():
    pipeline = open_stream(9 * 40 - 2, halving_share=1.0, min_letters=26)
    depths = []
    for text, mask in read_rows(pipeline, 8):
        lines = text.split("\n")
        assert len(lines) == 40
        letters = [line[0] for line in lines]
        assert letters.count(letters[-1]) == 2
        assert len(set(letters)) == 26
        assert (mask[-6:] == 1).all()
        depths.append(letters.index(letters[-1]) / 38)
        # Of 13 lines beyond one per letter, about half show one letter.
        assert max(collections.Counter(letters).values()) >= 4
    assert min(depths) < 0.2 < 0.8 < max(depths)


def test_letters_are_drawn_between_the_limits():
    pipeline = open_stream(9 * 60 - 2, halving_share=0.0, min_letters=2, max_letters=5)
    counts = {len({line[0] for line in text.split("\n")}) for text, _ in read_rows(pipeline, 8)}
    assert counts == {2, 3, 4, 5}


def test_rows_differ_and_depend_on_the_seed_and_split():
    rows = [text for text, _ in read_rows(open_stream(), 8)]
    assert len(set(rows)) == len(rows)
    valid = [text for text, _ in read_rows(open_stream(split="valid"), 8)]
    assert not set(rows) & set(valid)
    config = DataConfig(source="abcdigits", tokenizer="characters", seed=1, sequence_length=150)
    assert not set(rows) & {text for text, _ in read_rows(open_pipeline(config), 4)}


def test_valid_rows_count_once_and_weights_can_be_equal():
    pipeline = open_stream(split="valid", valid_sequences=11, other_weight=1.0)
    assert pipeline.num_batches == 2
    last = pipeline.batch(1)
    np.testing.assert_array_equal(last["loss_mask"].min(axis=1), [1, 1, 1, 0, 0, 0, 0, 0])
    assert pipeline.target_bytes(last) == 3 * 150


def test_bytes_tokenizer_gives_the_same_text():
    by_bytes = open_stream(tokenizer="bytes")
    assert by_bytes.vocab_size == 256
    pairs = zip(read_rows(by_bytes), read_rows(open_stream()), strict=True)
    assert all(one[0] == other[0] for one, other in pairs)


def test_unigram_entropy_is_near_that_of_its_lines():
    assert 2.5 < open_stream().unigram_bits_per_byte() < 5.3
