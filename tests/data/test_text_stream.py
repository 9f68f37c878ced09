"""Text that is given token by token is the text of all tokens, after that of the context."""

import functools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiscreen_jax.data import open_tokenizer
from tests.data import tokenizer_files
from tests.data.tokenizer_files import KINDS, SAMPLES

NAMED = ("bytes", "gpt2", "characters")
BROKEN = "\ufffd"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")

    @functools.cache
    def opened(kind):
        if kind in NAMED:
            return open_tokenizer(kind, alphabet="ab 日\ufffd")
        path = folder / f"{list(KINDS).index(kind)}.json"
        return open_tokenizer(str(tokenizer_files.write(path, kind)))

    return opened


def check_stream(tokenizer, context, tokens):
    before = tokenizer.decode(context).removesuffix(BROKEN)
    parts = list(tokenizer.decode_stream(iter(tokens), context=context))
    assert before + "".join(parts) == tokenizer.decode([*context, *tokens])
    assert len(tokens) <= len(parts) <= len(tokens) + 1
    texts = tokenizer.token_texts(tokens)
    assert (len(texts), "".join(texts)) == (len(tokens), tokenizer.decode(tokens))


@pytest.mark.parametrize("kind", [*NAMED, *KINDS])
def test_any_tokens_after_any_context(opened, kind):
    tokenizer = opened(kind)
    vocabulary = st.integers(0, tokenizer.vocab_size - 1)
    # Few tokens often: special ones, byte pieces, the continuation of words.
    few = st.lists(vocabulary, min_size=1, max_size=3).flatmap(
        lambda chosen: st.lists(st.sampled_from(chosen), max_size=60)
    )
    any_tokens = st.one_of(st.lists(vocabulary, max_size=60), few)

    @settings(max_examples=60, deadline=None)
    @given(context=any_tokens, tokens=any_tokens)
    def check(context, tokens):
        check_stream(tokenizer, context, tokens)

    check()


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("kind", ["bytes", "gpt2", *KINDS])
def test_texts_after_the_beginning_of_themselves(opened, kind, sample):
    tokenizer = opened(kind)
    tokens = tokenizer.encode(SAMPLES[sample])[:150].tolist()
    for cut in (0, 1, 2, 40):
        check_stream(tokenizer, tokens[:cut], tokens[cut:])


def test_words_keep_the_space_between_prompt_and_continuation(opened):
    for kind in ("byte fallback", "WordPiece", "Unigram"):
        tokenizer = opened(kind)
        prompt, both = (tokenizer.encode(text).tolist() for text in ("the cat", "the cat sat on"))
        new = both[len(prompt) :]
        assert both[: len(prompt)] == prompt
        assert "".join(tokenizer.decode_stream(new, context=prompt)) == " sat on", kind


def test_tokens_that_show_nothing_are_no_context(opened):
    tokenizer = opened("Unigram")
    the, cat = (tokenizer.encode(word).tolist() for word in ("the", "cat"))
    tokens = [*the, *[tokenizer.eos_id] * 40, *cat]
    assert "".join(tokenizer.decode_stream(tokens)) == "the cat"


def test_byte_tokens_do_not_take_characters_back(opened):
    tokenizer = opened("byte fallback")
    first = tokenizer.encode("ß").tolist()[-2:]  # two byte tokens
    stray = tokenizer._tokenizer.token_to_id("<0xFF>")
    parts = list(tokenizer.decode_stream([*first, stray, *first, first[0]]))
    assert parts == ["", "ß", "", "\ufffd", "ß", "", "\ufffd"]
    assert tokenizer.decode([*first, stray]) == "ß\ufffd"


def test_a_character_after_broken_bytes_is_whole(opened):
    parts = list(opened("bytes").decode_stream([0xFF, 0xFE, 0xFD, 0xE2, 0x82, 0xAC]))
    assert "".join(parts) == "\ufffd\ufffd\ufffd€"
    assert parts[-1] == "€"


def test_clean_up_decoders(opened):
    tokenizer = opened("WordPiece")
    pieces = [["the", "cat", "'", "s", ".", "it", "n't", "!"], ["it", "n't"]]
    for words in pieces:
        ids = [tokenizer._tokenizer.token_to_id(word) for word in words]
        known = [i for i in ids if i is not None]
        check_stream(tokenizer, [], known)
        check_stream(tokenizer, known[:1], known[1:])


def test_a_long_context_is_decoded_once(opened):
    tokenizer, sizes = opened("bytes"), []
    text = "some text of a long prompt. " * 400

    class Counting(type(tokenizer)):
        def decode(self, tokens):
            sizes.append(len(tokens))
            return super().decode(tokens)

    parts = list(
        Counting().decode_stream(b"and its end", context=np.frombuffer(text.encode(), "B"))
    )
    assert "".join(parts) == "and its end"
    assert sum(size > 64 for size in sizes) == 1


@pytest.mark.parametrize("pattern", [{"String": " n't"}, {"Regex": r" n'?t"}])
def test_decoders_that_clean_up_over_several_tokens(tmp_path, pattern):
    clean = {"type": "Replace", "pattern": pattern, "content": "n't"}
    spec = json.loads(tokenizer_files.content("byte fallback"))
    decoder = {"type": "Sequence", "decoders": [*spec["decoder"]["decoders"], clean]}
    path = tokenizer_files.write(tmp_path / "t.json", "byte fallback", decoder=decoder)
    tokenizer = open_tokenizer(str(path))
    tokens = tokenizer.encode("the dog did n't n't go, nt n").tolist()
    assert tokenizer.decode(tokens).startswith("the dog didn'tn't go")
    assert "".join(tokenizer.decode_stream(tokens)) == tokenizer.decode(tokens)
    assert "".join(tokenizer.token_texts(tokens)) == tokenizer.decode(tokens)
