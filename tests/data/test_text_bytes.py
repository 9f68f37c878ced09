"""Bytes behind tokens are bytes of the text, whatever the tokenizer and however rows are cut."""

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiscreen_jax.data import DataConfig, open_pipeline, open_tokenizer
from multiscreen_jax.data.byte_counts import TextBytes, count_bytes
from tests.data import tokenizer_files
from tests.data.corpora import bytes_behind, write_json_lines
from tests.data.tokenizer_files import KINDS, SAMPLES

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")

    @functools.cache
    def opened(kind):
        path = folder / f"{list(KINDS).index(kind)}.json"
        return open_tokenizer(str(tokenizer_files.write(path, kind)))

    return opened


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_length_have_the_bytes_of_the_text(opened, tmp_path, kind, sample):
    tokenizer, text = opened(kind), SAMPLES[sample]
    source = tmp_path / "c.txt"
    source.write_text(text)
    _, counts = bytes_behind(tokenizer, text)
    true = len(text.encode())
    assert counts.sum() == true
    for length in (4, 32, 256):
        if len(counts) <= length:
            continue
        config = DataConfig(
            source=str(source),
            valid_source=str(source),
            tokenizer=tokenizer.name,
            sequence_length=length,
            batch_size=3,
        )
        pipeline = open_pipeline(config, "valid")
        counted = sum(pipeline.target_bytes(batch) for batch in pipeline.iterate())
        assert counted == true - counts[0]  # the first token is no target


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_of_any_text_has_a_token(opened, kind):
    tokenizer = opened(kind)

    @settings(max_examples=25, deadline=None)
    @given(text=ANY_TEXT)
    def check(text):
        tokens, counts = bytes_behind(tokenizer, text)
        assert counts.shape == tokens.shape
        assert (counts >= 0).all()
        assert counts.sum() == (len(text.encode()) if len(tokens) else 0)
        np.testing.assert_array_equal(tokens, tokenizer.encode(text))

    check()


def test_byte_tokens_have_one_byte_each(opened):
    tokens, counts = bytes_behind(opened("byte fallback"), "a 好😀 the")
    pieces = [opened("byte fallback")._names[token] for token in tokens]
    assert pieces[:3] == ["▁", "a", "▁"]
    assert pieces[-1] == "▁the"
    assert counts.tolist() == [0, 1, 1] + 7 * [1] + [4]


def test_only_byte_level_tokenizers_that_change_no_text_have_fixed_lengths(opened):
    fixed = [kind for kind in KINDS if opened(kind).byte_lengths is not None]
    assert fixed == ["byte level"]


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"end_of_word_suffix": "</w>"},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}},
        {"pre_tokenizer": {"type": "Whitespace"}},
    ],
    ids=str,
)
def test_what_changes_text_before_the_bytes_takes_fixed_lengths_away(tmp_path, changes):
    path = tokenizer_files.write(tmp_path / "t.json", "byte level", **changes)
    tokenizer = open_tokenizer(str(path))
    assert tokenizer.byte_lengths is None
    text = SAMPLES["english"]
    assert bytes_behind(tokenizer, text)[1].sum() == len(text.encode())


def test_tokens_that_share_characters_share_their_bytes():
    text = TextBytes("aé  日b ")  # 1, 2, 1, 1, 3, 1, 1 bytes
    spans = np.array([[0, 1], [1, 2], [1, 2], [4, 5], [4, 5], [4, 5], [5, 6]])
    counts = count_bytes(text, spans, np.ones(7, int))
    # The spaces count with what follows them, the last with what is before.
    assert counts.tolist() == [1, 1, 1, 1, 2, 2, 2]
    # Pieces of three bytes and one share an emoji.
    counts = count_bytes(TextBytes("😀"), np.array([[0, 1], [0, 1]]), np.array([3, 1]))
    assert counts.tolist() == [3, 1]


@pytest.mark.parametrize("packing", ["stream", "segments"])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_documents_end_with_no_bytes_and_masked_targets_have_none(opened, tmp_path, split, packing):
    tokenizer = opened("Unigram")
    texts = [f"The cat {n}, 日本 naïve." for n in range(40)]
    source = write_json_lines(tmp_path / "c.jsonl", texts)
    config = DataConfig(
        source=str(source), tokenizer=tokenizer.name, sequence_length=16, batch_size=2,
        valid_fraction=0.5, packing=packing,
    )  # fmt: skip
    pipeline = open_pipeline(config, split)
    if split == "train":
        assert pipeline.batch(0)["target_bytes"].shape == (2, 16)
        return
    counted = sum(pipeline.target_bytes(batch) for batch in pipeline.iterate())
    firsts = [int(bytes_behind(tokenizer, text)[1][0]) for text in texts[20:]]
    lost = sum(firsts) if packing == "segments" else firsts[0]
    assert counted == sum(len(text.encode()) for text in texts[20:]) - lost
    assert 0 < pipeline.unigram_bits_per_byte() < 8


def test_what_a_tokenizer_loses_is_a_share_of_the_bytes(opened, tmp_path):
    known, unknown = "The cat sat on the mat. " * 20, "한국" * 20
    for kind, share in (("WordPiece", 120 / 600), ("byte level", 0.0), ("byte fallback", 0.0)):
        source = tmp_path / "c.txt"
        source.write_text(known + unknown)
        config = DataConfig(
            source=str(source), tokenizer=opened(kind).name, sequence_length=4, batch_size=2
        )
        pipeline = open_pipeline(config)
        assert pipeline.lost_share == pytest.approx(share)
        assert (pipeline.loss_note() is None) == (share == 0)
    note = dataclasses.replace(config, tokenizer=opened("WordPiece").name)
    assert "loses 20.00% of the train text's bytes" in open_pipeline(note).loss_note()


def test_a_model_without_an_unknown_token_loses_what_it_leaves_out(tmp_path):
    spec = {"unk_token": None, "byte_fallback": False}
    path = tokenizer_files.write(tmp_path / "t.json", "byte fallback", **spec)
    (encoded,) = open_tokenizer(str(path)).encode_corpus(["the cat 한국 sat"])
    assert encoded.lost_bytes == len("한국".encode())
    assert encoded.byte_counts.sum() == len("the cat 한국 sat".encode())
