"""No special token ever comes out of ordinary text, whichever model matches its name."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiscreen_jax.data import open_tokenizer
from multiscreen_jax.data.loading import encode_documents
from multiscreen_jax.data.sources import Document
from tests.data import tokenizer_files
from tests.data.tokenizer_files import KINDS, SAMPLES, SPECIAL


def special_ids(tokenizer):
    model = tokenizer._tokenizer
    names = model.get_added_tokens_decoder()
    return {i for i, token in names.items() if token.special} | {tokenizer.eos_id}


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_special_tokens_are_text(tmp_path, kind):
    tokenizer = open_tokenizer(str(tokenizer_files.write(tmp_path / "t.json", kind)))
    special = special_ids(tokenizer)
    assert len(special) == len(SPECIAL)
    unknown = {tokenizer._unknown} - {None}
    words = st.lists(st.sampled_from([*SPECIAL, "a", " ", "the", "</", "s>", "▁", "##"]))

    @settings(max_examples=30, deadline=None)
    @given(text=words.map("".join))
    def check(text):
        tokens = tokenizer.encode(text)
        assert not (special - unknown) & set(tokens.tolist())
        (batched,) = tokenizer.encode_batch([text])
        np.testing.assert_array_equal(batched, tokens)

    check()
    for text in SAMPLES.values():
        assert not (special - unknown) & set(tokenizer.encode(text).tolist())


@pytest.mark.parametrize("kind", ["byte fallback", "byte level", "Unigram"])
def test_names_come_back(tmp_path, kind):
    tokenizer = open_tokenizer(str(tokenizer_files.write(tmp_path / "t.json", kind)))
    assert tokenizer.decode(tokenizer.encode("a</s>at")) == "a</s>at"


def test_the_tokens_of_other_texts_stay(tmp_path):
    from tokenizers import Tokenizer

    for kind in KINDS:
        path = tokenizer_files.write(tmp_path / "t.json", kind)
        plain, tokenizer = Tokenizer.from_file(str(path)), open_tokenizer(str(path))
        for name in ("english", "chinese", "emoji", "code"):
            expected = plain.encode(SAMPLES[name], add_special_tokens=False).ids
            assert tokenizer.encode(SAMPLES[name]).tolist() == expected
        for token in range(tokenizer.vocab_size):
            assert tokenizer.decode([token]) == plain.decode([token]) or token == tokenizer.eos_id


def test_a_merge_that_makes_a_special_token_is_left_out(tmp_path):
    path = tokenizer_files.write(tmp_path / "t.json", "byte fallback")
    tokenizer = open_tokenizer(str(path), eos_token="▁the")
    tokens = tokenizer.encode("the cat at the log")
    assert tokenizer.eos_id not in tokens
    assert tokenizer.decode(tokens) == "the cat at the log"


def test_an_end_token_that_is_not_marked_special(tmp_path):
    spec = json.loads(tokenizer_files.content("byte level"))
    added = [{**token, "special": False} for token in spec["added_tokens"]]
    path = tokenizer_files.write(tmp_path / "t.json", "byte level", added_tokens=added)
    tokenizer = open_tokenizer(str(path))
    tokens = tokenizer.encode("a<|endoftext|>b</s>")
    assert tokenizer.eos_id not in tokens
    assert tokenizer._tokenizer.token_to_id("</s>") in tokens  # ordinary, as the file says
    assert tokenizer.decode(tokens) == "a<|endoftext|>b</s>"


def test_whole_words_of_the_vocabulary_are_no_way_in(tmp_path):
    changes = {"ignore_merges": True, "pre_tokenizer": None, "normalizer": None}
    path = tokenizer_files.write(tmp_path / "t.json", "byte fallback", **changes)
    tokenizer = open_tokenizer(str(path))
    tokens = tokenizer.encode("<|endoftext|>")
    assert tokenizer.eos_id not in tokens
    assert tokenizer.decode(tokens) == "<|endoftext|>"


@pytest.mark.parametrize(
    ("kind", "eos", "text", "position"),
    [
        ("byte level", "Ċ", "a line\nanother", 6),
        ("byte fallback", "<0x0A>", "日 line\nanother", 6),
        ("word suffix", ";</w>", "the ; end", 4),
        ("WordPiece", "[UNK]", "the 한 end", 4),
    ],
)
def test_what_cannot_be_avoided_is_refused(tmp_path, kind, eos, text, position):
    path = tokenizer_files.write(tmp_path / "t.json", kind)
    tokenizer = open_tokenizer(str(path), eos_token=eos)
    documents = [Document("c.txt:1", "the cat", 0), Document("c.txt:2", text, 0)]
    with pytest.raises(ValueError, match=rf"^c.txt:2: '.*' at position {position} would become"):
        list(encode_documents(documents, tokenizer))


def test_dropout_of_a_model_is_for_its_own_training(tmp_path):
    path = tokenizer_files.write(tmp_path / "t.json", "byte level", dropout=0.9)
    plain = tokenizer_files.write(tmp_path / "p.json", "byte level")
    text = SAMPLES["english"]
    expected = open_tokenizer(str(plain)).encode(text)
    np.testing.assert_array_equal(open_tokenizer(str(path)).encode(text), expected)
