import json
import warnings

import numpy as np
import pytest

from multiscreen_jax.data import DataConfig, open_pipeline
from multiscreen_jax.data import token_files as files
from multiscreen_jax.data.tokenizers import CharacterTokenizer, HuggingFaceTokenizer, open_tokenizer
from tests.data import tokenizer_files
from tests.data.corpora import byte_level_tokenizer, write_tokens


def open_bin(path, split="train", **fields):
    config = DataConfig(
        source=str(path), valid_fraction=0.2, sequence_length=4, batch_size=2, **fields
    )
    return open_pipeline(config, split)


@pytest.fixture
def written(tmp_path):
    """A token file as prepare_data leaves it: checksum, number of tokens, documents."""
    tokenizer = CharacterTokenizer("abcd")
    path = tmp_path / "train.bin"
    np.array([0, 1, 2, 4, 3, 3, 4] * 6, "<u2").tofile(path)
    starts = np.array([0, 4, 7, 11, 14, 18, 21, 25, 28, 32, 35, 39])
    files.finish_token_file(path, np.dtype("uint16"), starts, tokenizer)
    return path


def change_sidecar(path, **changes):
    facts = json.loads(path.with_suffix(".json").read_text())
    facts.update(changes)
    facts = {key: value for key, value in facts.items() if value is not None}
    path.with_suffix(".json").write_text(json.dumps(facts))


def test_a_written_file_opens_with_its_own_tokenizer(written):
    pipeline = open_bin(written, tokenizer="gpt2", packing="segments")
    assert pipeline.tokenizer.alphabet == "abcd"
    assert pipeline.vocab_size == 5
    rows = sorted(row.tolist() for row in pipeline.batch(0)["tokens"])
    assert all(max(row) <= 4 for row in rows)
    assert pipeline.batch(0)["segment_ids"].max() >= 2
    valid = open_bin(written, "valid", packing="segments")  # the last two of twelve documents
    assert valid.batch(0)["tokens"].tolist() == [[0, 1, 2, 4, 3], [3, 3, 4, 0, 0]]
    assert valid.batch(0)["segment_ids"].tolist() == [[1, 1, 1, 1, 2], [1, 1, 1, 0, 0]]


def test_a_foreign_file_needs_three_facts(tmp_path):
    path = write_tokens(tmp_path / "a.bin", range(100), dtype="uint32")
    pipeline = open_bin(path)
    assert pipeline.num_batches == 10
    assert pipeline.unigram_bits_per_byte() > 6
    with pytest.raises(ValueError, match="packing 'segments' needs to know documents"):
        open_bin(path, packing="segments")
    before = pipeline.fingerprint
    write_tokens(path, [*range(99), 7], dtype="uint32")
    assert open_bin(path).fingerprint != before


def test_tokenizer_json_travels_with_the_file(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    tokenizer = HuggingFaceTokenizer(byte_level_tokenizer(folder / "tokenizer.json"))
    path = folder / "a.bin"
    tokens = np.tile(tokenizer.encode("Batman "), 9).astype("<u2")
    tokens.tofile(path)
    files.finish_token_file(path, np.dtype("uint16"), None, tokenizer)
    moved = folder.rename(tmp_path / "moved")
    pipeline = open_bin(moved / "a.bin")
    assert "Batman" in pipeline.tokenizer.decode(pipeline.batch(0)["tokens"].ravel())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int16"}, r"dtype is 'int16'; allowed: uint16, uint32, int32 \(did you mean"),
        ({"dtype": None}, "lacks dtype; needed: dtype, vocab_size, tokenizer"),
        ({"vocab_size": None, "tokenizer": None}, "lacks vocab_size, tokenizer"),
        ({"vocab_size": 7}, "vocab_size is 7 but tokenizer 'characters' has 5 tokens"),
        ({"vocab_size": -1}, "vocab_size is -1; allowed: an integer >= 1"),
        ({"tokenizer": "gpt5"}, "tokenizer is 'gpt5'; allowed: bytes, characters, gpt2"),
        ({"tokenizer": 2}, "tokenizer is 2; allowed: a string"),
        ({"alphabet": None}, "the characters tokenizer needs its alphabet"),
        ({"num_tokens": 41}, "is damaged: it has 42 tokens but train.json says 41"),
        ({"num_documents": 11}, "has 12 document starts but train.json says 11"),
        ({"checksum": "00"}, "is damaged: its checksum is not the one in train.json"),
        ({"alphabet": "abdc"}, "tokenizer characters is not the one that made the tokens"),
        (
            {"alphabet": "abc", "vocab_size": 4, "checksum": None, "tokenizer_checksum": None},
            "token 3 is 4; allowed: 0 to 3",
        ),
    ],
)
def test_sidecars_that_disagree(written, changes, message):
    change_sidecar(written, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        open_bin(written)
    assert "\n" not in str(caught.value)


def test_moved_document_starts_are_noticed(written):
    before = open_bin(written).fingerprint
    file = files.documents_path(written)
    starts = np.load(file)
    starts[1] += 1
    np.save(file, starts)
    with pytest.raises(ValueError, match="npy is damaged: its checksum is not the one in train"):
        open_bin(written)
    change_sidecar(written, documents_checksum=None)  # as of files made before there was one
    assert open_bin(written).fingerprint != before


def test_damaged_files(written):
    content = written.read_bytes()
    written.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="83 bytes are no whole number of uint16 tokens"):
        open_bin(written)
    written.write_bytes(content[:-2])
    with pytest.raises(ValueError, match=r"has 41 tokens but train.json says 42"):
        open_bin(written)
    written.write_bytes(content[:10] + b"\x02" + content[11:])
    with pytest.raises(ValueError, match=r"its checksum is not the one in train.json"):
        open_bin(written)
    written.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        open_bin(written)


def test_damaged_or_missing_neighbours(written):
    documents = files.documents_path(written)
    np.save(documents, np.array([0, 9, 9, 11, 14, 18, 21, 25, 28, 32, 35, 39]))
    with pytest.raises(ValueError, match="document starts must ascend from 0 to below 42"):
        open_bin(written)
    documents.write_text("nothing")
    with pytest.raises(ValueError, match="not a numpy array"):
        open_bin(written)
    documents.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no train.documents.npy"):
        open_bin(written)
    sidecar = files.sidecar_path(written)
    sidecar.write_text("{")
    with pytest.raises(ValueError, match=r"train.json: not JSON"):
        open_bin(written)
    sidecar.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no sidecar train.json"):
        open_bin(written)


def test_large_files_are_checked_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "VERIFIED_BYTES", 10)
    path = write_tokens(tmp_path / "a.bin", [*range(99), 300])
    valid = open_bin(path, "valid")
    valid.batch(0)
    with pytest.raises(ValueError, match=r"token 19 is 300; allowed: 0 to 255"):
        valid.batch(2)


@pytest.fixture
def counted(tmp_path):
    """A token file whose tokenizer has no fixed lengths, with the bytes behind its tokens."""
    tokenizer = open_tokenizer(str(tokenizer_files.write(tmp_path / "tokenizer.json", "Unigram")))
    (encoded,) = tokenizer.encode_corpus(["The cat 日本 sat on the mat. 한 " * 9])
    path = tmp_path / "train.bin"
    np.append(encoded.tokens, tokenizer.eos_id).astype("<u2").tofile(path)
    counts = np.append(encoded.byte_counts, 0)
    files.finish_token_file(
        path, np.dtype("uint16"), np.array([0]), tokenizer, counts, encoded.lost_bytes / 345
    )
    return path, counts


def test_bytes_behind_tokens_are_stored_narrow_and_read_back(counted):
    path, counts = counted
    assert np.load(files.bytes_path(path)).dtype == np.uint8
    pipeline = open_bin(path, "valid", valid_source=str(path))
    assert sum(map(pipeline.target_bytes, pipeline.iterate())) == counts.sum() - counts[0]
    assert pipeline.lost_share == pytest.approx(27 / 345)
    assert 0 < pipeline.unigram_bits_per_byte() < 8
    held_out = open_bin(path, "valid")
    kept = len(counts) - int(len(counts) * 0.2)
    counted_bytes = sum(map(held_out.target_bytes, held_out.iterate()))
    assert counted_bytes == counts[kept + 1 :].sum()


def test_many_bytes_behind_one_token_fit(counted):
    path, counts = counted
    counts = counts.astype(np.int64)
    counts[5] = 1_000_000
    facts = files.read_sidecar(path)
    tokenizer = files.open_own_tokenizer(path)
    files.finish_token_file(path, np.dtype("uint16"), None, tokenizer, counts)
    assert files.read_sidecar(path)["checksum"] == facts["checksum"]
    pipeline = open_bin(path, "valid", valid_source=str(path))
    assert sum(map(pipeline.target_bytes, pipeline.iterate())) == counts.sum() - counts[0]


def test_files_without_the_bytes_behind_tokens_have_no_bits_per_byte(counted):
    path, _ = counted
    change_sidecar(path, bytes_checksum=None, lost_share=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_bin(path)
    with pytest.warns(UserWarning, match=r"train.bin does not hold the bytes .* prepare it again"):
        pipeline = open_bin(path, "valid", valid_source=str(path))
    assert pipeline.target_bytes(pipeline.batch(0)) == 0
    assert np.isnan(pipeline.unigram_bits_per_byte())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: files.bytes_path(path).unlink(), "has no train.bytes.npy, though its sidec"),
        (lambda path: files.bytes_path(path).write_bytes(b"x"), "train.bytes.npy: not a numpy arr"),
        (
            lambda path: np.save(files.bytes_path(path), np.ones(5, "u1")),
            r"is uint8 \[5\]; allowed",
        ),
        (
            lambda path: np.save(files.bytes_path(path), np.load(files.bytes_path(path)) + 1),
            "train.bytes.npy is damaged: its checksum",
        ),
        (lambda path: change_sidecar(path, lost_share=2), "lost_share is 2; allowed: a number"),
        (lambda path: change_sidecar(path, lost_share="a"), "lost_share is 'a'; allowed"),
    ],
    ids=["missing", "no array", "length", "content", "share", "no share"],
)
def test_damaged_bytes_behind_tokens(counted, damage, message):
    path, _ = counted
    damage(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_bin(path)
