import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiscreen_jax.data import gpt2_tokenizer
from multiscreen_jax.data.tokenizer import library_errors
from multiscreen_jax.data.tokenizers import (
    GPT2_EOS,
    GPT2_PATTERN,
    ByteTokenizer,
    CharacterTokenizer,
    Gpt2Tokenizer,
    HuggingFaceTokenizer,
    NumberTokenizer,
    byte_alphabet,
    gpt2_merges,
    gpt2_pieces,
    open_tokenizer,
)
from tests.data import tokenizer_files
from tests.data.corpora import TEXTS, byte_level_tokenizer, metaspace_tokenizer

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
AWKWARD = [
    "",
    " ",
    "Hello world",
    "  two spaces,\n\n\ttabs \n and trailing  ",
    "it's we'll I'VE 'sdm' don't",
    "naïve 日本語 🙂👩‍👩‍👧 e\u0301 \u00a0nbsp \u2003em",
    "x=1234567890; price: $3.14!!! ...---",
    f"a {GPT2_EOS} in the text",
    "\x00\x01\x7f\ufeff\r\n",
    "a" * 3000,
    " " * 500 + "x",
]


@pytest.fixture(scope="module")
def gpt2():
    return Gpt2Tokenizer()


@pytest.fixture(scope="module")
def gpt2_by_tokenizers():
    """GPT-2 built once more, by the other library, from the same merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {piece: index for index, piece in enumerate(gpt2_pieces())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=gpt2_merges()))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_gpt2_known_tokens(gpt2):
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert gpt2.encode("Hello, world!").tolist() == [15496, 11, 995, 0]
    assert gpt2.encode(" the").tolist() == [262]
    assert (gpt2.vocab_size, gpt2.eos_id) == (50257, 50256)
    assert gpt2.byte_lengths[[262, 50256]].tolist() == [4, 0]
    assert gpt2.decode([15496, 50256, 995]) == "Hello world"


def test_gpt2_treats_the_name_of_its_end_token_as_text(gpt2):
    tokens = gpt2.encode(GPT2_EOS)
    assert gpt2.eos_id not in tokens
    assert gpt2.decode(tokens) == GPT2_EOS


@pytest.mark.parametrize("text", AWKWARD, ids=range(len(AWKWARD)))
def test_gpt2_equals_the_build_of_another_library(gpt2, gpt2_by_tokenizers, text):
    assert gpt2.encode(text).tolist() == gpt2_by_tokenizers.encode(text).ids


@settings(max_examples=150, deadline=None)
@given(text=ANY_TEXT)
def test_gpt2_properties(gpt2, gpt2_by_tokenizers, text):
    tokens = gpt2.encode(text)
    assert gpt2.decode(tokens) == text
    assert gpt2.byte_lengths[tokens].sum() == len(text.encode())
    assert tokens.tolist() == gpt2_by_tokenizers.encode(text).ids


SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"
NEAR_SPACES = "\x1c\x1f\u180e\u200b\u2060\ufeff"  # no \s of the pattern, though some of Python's


@settings(max_examples=150, deadline=None)
@given(
    words=st.lists(
        st.one_of(
            st.text(st.sampled_from(SPACES), max_size=5),
            st.text(st.sampled_from(NEAR_SPACES + "a1'.日s"), max_size=3),
        )
    ),
    longest=st.integers(1, 4),
)
def test_long_white_space_is_split_off_as_the_pattern_splits_it(gpt2, words, longest):
    text = "".join(words)
    parts = list(gpt2_tokenizer.parts_between_runs(text, longest))
    assert "".join(parts) == text
    alone = [token for part in parts for token in gpt2._encoding.encode_ordinary(part)]
    assert alone == gpt2._encoding.encode_ordinary(text)


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from(SPACES + NEAR_SPACES + "ab1'.日smtle"), max_size=40))
def test_the_possessive_pattern_gives_the_tokens_of_the_first_one(gpt2, text):
    import regex

    first = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    assert regex.findall(GPT2_PATTERN, text) == regex.findall(first, text)


@pytest.mark.parametrize("filling", [" ", "\n", "\t \u3000", "a", "1", "^", "\u0301"])
def test_long_runs_can_be_encoded(gpt2, filling):
    run = filling * ((1_000_000 if filling.isspace() else 100_000) // len(filling))
    for text in (f"a{run}", f"a{run}.b"):
        tokens = gpt2.encode(text)
        assert gpt2.byte_lengths[tokens].sum() == len(text.encode())
    if filling == " ":
        assert gpt2.encode(f"a{run}x").tolist() == [64, *[220] * 999_999, 2124]


def test_a_panic_of_a_library_is_one_line():
    class PanicException(BaseException):
        pass

    one_line = pytest.raises(ValueError, match=r"^tiktoken cannot: called `Result::unwrap\(\)`$")
    with one_line, library_errors("tiktoken cannot"):
        raise PanicException("called `Result::unwrap()`\nnote: run with")
    with pytest.raises(KeyboardInterrupt), library_errors("tiktoken cannot"):
        raise KeyboardInterrupt


@settings(max_examples=100, deadline=None)
@given(text=ANY_TEXT)
def test_bytes_round_trip(text):
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int32
    assert tokenizer.decode(tokens) == text
    assert tokenizer.byte_lengths[tokens].sum() == len(text.replace("\0", "").encode())


@settings(max_examples=100, deadline=None)
@given(data=st.data(), alphabet=st.lists(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_characters_round_trip(data, alphabet):
    alphabet = "".join(dict.fromkeys(alphabet))
    text = data.draw(st.text(st.sampled_from(alphabet)))
    tokenizer = CharacterTokenizer(alphabet)
    tokens = tokenizer.encode(text)
    assert tokens.tolist() == [alphabet.index(character) for character in text]
    assert tokenizer.decode(tokens) == text
    assert tokenizer.decode([*tokens, tokenizer.eos_id]) == text
    assert tokenizer.byte_lengths[tokens].sum() == len(text.encode())


def test_bytes_that_are_no_text_are_shown_as_such():
    assert ByteTokenizer().decode([72, 105, 200]) == "Hi\ufffd"
    assert (ByteTokenizer().vocab_size, ByteTokenizer().eos_id) == (256, 0)


def test_characters_without_end_token_and_foreign_characters():
    tokenizer = CharacterTokenizer("ab", ends_documents=False)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (2, None)
    with pytest.raises(ValueError, match="character 'c' at position 2 is not in the alphabet of 2"):
        tokenizer.encode("abc")
    with pytest.raises(ValueError, match="the characters tokenizer needs its alphabet"):
        open_tokenizer("characters")


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
@pytest.mark.parametrize("wrong", [-1, 60000])
def test_decoding_names_what_is_no_token(name, wrong):
    with pytest.raises(ValueError, match=f"token 1 is {wrong}; allowed: 0 to"):
        open_tokenizer(name).decode([5, wrong])


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_batches_encode_as_single_texts(name):
    tokenizer = open_tokenizer(name)
    for text, tokens in zip(AWKWARD, tokenizer.encode_batch(AWKWARD), strict=True):
        np.testing.assert_array_equal(tokens, tokenizer.encode(text))


def test_byte_alphabet_names_every_byte_once():
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert all(character.isprintable() for character in alphabet)


def test_tokenizer_json_byte_level(tmp_path):
    tokenizer = HuggingFaceTokenizer(byte_level_tokenizer(tmp_path / "tokenizer.json"))
    assert tokenizer.vocab_size == 300
    for text in [*TEXTS, *AWKWARD]:
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        assert tokenizer.byte_lengths[tokens].sum() == len(text.encode())
        assert tokenizer.eos_id not in tokens
    batch = tokenizer.encode_batch(TEXTS)
    np.testing.assert_array_equal(batch[7], tokenizer.encode(TEXTS[7]))


def test_tokenizer_json_without_lengths_and_with_named_end(tmp_path):
    path = metaspace_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = open_tokenizer(str(path))
    assert tokenizer.byte_lengths is None
    assert tokenizer.eos_id == 1
    text = TEXTS[0].strip()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    other = open_tokenizer(str(path), eos_token="<unk>")
    assert other.eos_id == 0
    assert other.fingerprint != tokenizer.fingerprint


def test_bad_tokenizer_files(tmp_path):
    path = byte_level_tokenizer(tmp_path / "tokenizer.json", eos="<done>")
    with pytest.raises(FileNotFoundError, match=r"tokeniser.json does not exist .*tokenizer.json"):
        open_tokenizer(str(tmp_path / "tokeniser.json"))
    with pytest.raises(ValueError, match=r"none of the usual names.*'<done>'"):
        open_tokenizer(str(path))
    with pytest.raises(ValueError, match="has no '<end>' as end-of-document token"):
        open_tokenizer(str(path), eos_token="<end>")
    assert open_tokenizer(str(path), eos_token="<done>").eos_id == 0
    path.write_text('{"version": "1.0", "model"')
    with pytest.raises(ValueError, match=r"is not a readable tokenizer.json") as caught:
        open_tokenizer(str(path))
    assert "\n" not in str(caught.value)


DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}


def with_model(model, **parts):
    parts = {"added_tokens": [], "normalizer": None, "pre_tokenizer": None, **parts}
    return json.dumps({"version": "1.0", "decoder": DECODER, "model": model, **parts})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            with_model({"type": "BPE", "vocab": {"</s>": 0, "a": 4_000_000_000}, "merges": []}),
            "token 'a' is number 4000000000; allowed: 0 to 16777215",
        ),
        (
            with_model({"type": "WordLevel", "vocab": {"</s>": 1 << 24}, "unk_token": "?"}),
            "token '</s>' is number 16777216; allowed",
        ),
        (with_model({"type": "BPE", "vocab": {}, "merges": []}), "has no tokens; allowed"),
        ("[" * 100_000, "is not a readable tokenizer.json"),
        (
            with_model({"type": "BPE", "vocab": {"</s>": 0}, "merges": []}).replace(
                json.dumps(DECODER),
                '{"type":"Sequence","decoders":[' * 50_000 + "]}" * 50_000,
            ),
            "is not a readable tokenizer.json: recursion limit exceeded",
        ),
        ("\udc80", "is not a readable tokenizer.json"),
    ],
    ids=["large id", "large end", "empty", "brackets", "nested", "no UTF-8"],
)
def test_hostile_tokenizer_files(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message) as caught:
        open_tokenizer(str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_texts_that_a_tokenizer_cannot_encode_are_refused_in_one_line(tmp_path):
    path = tokenizer_files.write(tmp_path / "t.json", "WordPiece", unk_token="[nowhere]")
    with pytest.raises(ValueError, match=r"t.json cannot encode this text: WordPiece error"):
        open_tokenizer(str(path)).encode("한")
    path = tokenizer_files.write(tmp_path / "t.json", "Unigram", unk_id=None)
    with pytest.raises(ValueError, match=r"t.json cannot encode this text: "):
        open_tokenizer(str(path)).encode_corpus(["the cat", "한"])
    with pytest.raises(ValueError, match=r"t.json cannot encode this text: "):
        open_tokenizer(str(path)).encode("\ud800")


def test_numbers_round_trip_and_are_no_text():
    tokenizer = NumberTokenizer(300)
    assert tokenizer.encode(" 7 299\n0 ").tolist() == [7, 299, 0]
    assert tokenizer.decode([7, 299, 0]) == "7 299 0"
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.byte_lengths.sum() == 0
    assert tokenizer.fingerprint != NumberTokenizer(301).fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("7 seven", "'seven' is not a number; allowed: numbers and spaces"),
        ("-1", "'-1' is not a number"),
        ("4 300", "token 1 is 300; allowed: 0 to 299"),
        ("9" * 400, "token 0 is 10+; allowed: 0 to 299"),
    ],
)
def test_what_is_no_number_of_the_vocabulary_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        NumberTokenizer(300).encode(text)
