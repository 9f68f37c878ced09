"""Needles: where they lie, how long prompts are, and that nothing but the seed decides."""

import gzip
import json
import lzma
import re

import numpy as np
import pytest

from multiscreen_jax.data import open_tokenizer
from multiscreen_jax.data.needle import Haystack, hide, make_question

NEEDLE = re.compile(r"One of the special magic numbers for ([a-z]+-[a-z]+) is: (\d+)\. ?")


def sentences(count, seed=0):
    rng = np.random.default_rng(seed)
    words = ["river", "stone", "walked", "slowly", "and", "the", "captain", "answered", "née"]
    return " ".join(
        " ".join(rng.choice(words, rng.integers(4, 20))).capitalize() + rng.choice([".", "!", "?"])
        for _ in range(count)
    )


@pytest.fixture(scope="module")
def haystack():
    return Haystack("made up", sentences(3000))


def ask(haystack, length=3000, depth=0.5, **settings):
    return make_question(haystack, length, depth, len, **settings)


def split(prompt):
    """(introduction, text with needles, question) of a prompt."""
    introduction, rest = prompt.split("\n", 1)
    text, question = rest.rsplit("\n", 1)
    return introduction, text, question


def without_needles(text):
    return NEEDLE.sub("", text).strip()


@pytest.mark.parametrize("depth", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("keys", [1, 4])
def test_the_needle_lies_at_its_depth_between_sentences(haystack, depth, keys):
    for index in range(10):
        question = ask(haystack, 5000, depth, keys=keys, index=index)
        _, text, asked = split(question.prompt)
        found = dict(NEEDLE.findall(text))
        assert len(found) == keys
        key = re.search(r"number for (\S+) mentioned", asked).group(1)
        assert question.answer == f" {found[key]}"
        assert len(found[key]) == 7
        assert question.prompt.endswith("is:")
        before = text[: text.index(f"numbers for {key} is")]
        before = before[: before.rindex("One of")]
        at_an_end = not before.strip() or without_needles(before)[-1:] in ("", ".", "!", "?")
        assert at_an_end or not without_needles(text[len(before) :])
        clean = without_needles(text)
        place = len(without_needles(before)) / len(clean)
        assert abs(place - depth) < 150 / len(clean)  # the longest sentences have 150 characters
        assert clean in f"{haystack.text}\n\n{haystack.text}"


def test_other_depths_and_lengths_ask_the_same(haystack):
    base = ask(haystack, 3000, 0.1, keys=3, index=5)
    for length, depth in ((3000, 0.9), (6000, 0.1)):
        other = ask(haystack, length, depth, keys=3, index=5)
        assert other.answer == base.answer
        assert split(other.prompt)[2] == split(base.prompt)[2]
        texts = [without_needles(split(q.prompt)[1]) for q in (base, other)]
        shorter = min(map(len, texts)) - 100
        assert texts[0][:shorter] == texts[1][:shorter]
        found = [sorted(NEEDLE.findall(q.prompt)) for q in (base, other)]
        assert found[0] == found[1]


def test_questions_are_functions_of_seed_and_index(haystack):
    questions = {ask(haystack, seed=seed, index=index) for seed in range(3) for index in range(20)}
    assert len(questions) == 60
    assert ask(haystack, seed=2, index=7) in questions


@pytest.mark.parametrize("tokenizer", ["bytes", "gpt2"])
@pytest.mark.parametrize("length", [500, 2000, 12000])
def test_prompts_are_at_most_one_percent_shorter_than_asked(haystack, tokenizer, length):
    encode = open_tokenizer(tokenizer).encode
    for index, depth in enumerate((0.0, 0.3, 1.0)):
        question = make_question(
            haystack, length, depth, lambda text: len(encode(text)), keys=2, index=index
        )
        prompt, whole = encode(question.prompt), encode(question.prompt + question.answer)
        np.testing.assert_array_equal(whole[: len(prompt)], prompt)
        assert 0.99 * length - 12 <= len(whole) <= length  # a word has at most 12 tokens


def test_a_text_shorter_than_the_context_begins_again():
    ring = Haystack("short", sentences(12))
    _, text, _ = split(ask(ring, 8000, keys=1).prompt)
    assert without_needles(text).count(ring.text) > 3


def test_text_without_sentences_is_divided_between_words():
    text = hide("no end of it " * 9, ["<needle> "], [0.5])
    assert re.search(r" <needle> \w", text)
    assert text.replace("<needle> ", "") == ("no end of it " * 9).strip()
    assert hide("", ["<needle> "], [0.5]) == "<needle>"


def test_text_without_words_still_ends():
    question = ask(Haystack("one word", "x" * 50_000), 4000)
    assert NEEDLE.search(question.prompt)


@pytest.mark.parametrize("extension", ["jsonl", "jsonl.gz", "jsonl.xz"])
def test_books_are_read_from_json_lines(tmp_path, extension):
    lines = "".join(json.dumps({"id": i, "text": sentences(40, i)}) + "\n" for i in range(3))
    path = tmp_path / f"books.{extension}"
    openers = {"jsonl": open, "jsonl.gz": gzip.open, "jsonl.xz": lzma.open}
    with openers[extension](path, "wt") as stream:
        stream.write(lines)
    assert Haystack.read(str(path)).text == "\n\n".join(sentences(40, i) for i in range(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 1.1}, "depth is 1.1; allowed: a number from 0 to 1"),
        ({"keys": 0}, "keys is 0; allowed: an integer from 1 to 1024"),
        ({"keys": 1025}, "keys is 1025"),
        ({"digits": 16}, "digits is 16; allowed: an integer from 1 to 15"),
        ({"length": 100}, "length is 100; allowed: at least 3"),
    ],
)
def test_bad_arguments_are_one_line(haystack, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        ask(haystack, **settings)
    assert "\n" not in str(caught.value)


def test_too_little_text_is_named(tmp_path):
    (tmp_path / "book.txt").write_text("few words")
    with pytest.raises(ValueError, match=r"book.txt: fewer than 100 words"):
        Haystack.read(str(tmp_path / "book.txt"))
