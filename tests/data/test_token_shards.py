import dataclasses
import json

import numpy as np
import pytest

from multiscreen_jax.data import DataConfig, open_pipeline, token_files, token_shards
from multiscreen_jax.data.packing import checksum_of, document_numbers
from multiscreen_jax.data.tokenizers import ByteTokenizer

# Documents longer than three records, ends at the ends of records and shards, an empty shard.
LENGTHS = ((3, 4, 1, 30), (), (7, 1, 2, 2, 90, 5), (4,), (16, 16, 3))
RECORD = 8


def make_documents():
    rng = np.random.default_rng(0)
    return [
        [np.append(rng.integers(1, 256, length), 0) for length in lengths] for lengths in LENGTHS
    ]


@pytest.fixture
def made(tmp_path):
    """One stream twice: in the folder `shards`, and in `all.bin`."""
    folder = tmp_path / "shards"
    folder.mkdir()
    dtype, shards = np.dtype("uint16"), []
    for index, documents in enumerate(make_documents()):
        path = token_shards.shard_path(folder, index, len(LENGTHS))
        tokens, count = token_shards.write_shard(path, documents, dtype, RECORD)
        shards.append(
            {
                "num_tokens": tokens,
                "num_documents": count,
                "num_bytes": path.stat().st_size,
                "checksum": token_files.file_checksum(path),
            }
        )
    token_shards.finish_token_shards(folder, RECORD, ByteTokenizer(), shards)
    joined = [document for documents in make_documents() for document in documents]
    lengths = [len(document) for document in joined]
    np.concatenate(joined).astype("<u2").tofile(tmp_path / "all.bin")
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    token_files.finish_token_file(tmp_path / "all.bin", dtype, starts, ByteTokenizer())
    return folder, tmp_path / "all.bin"


@pytest.mark.parametrize("packing", ["stream", "segments"])
@pytest.mark.parametrize("processes", [1, 4])
# Nothing is held out; less than a document, so tokens; four documents.
@pytest.mark.parametrize("fraction", [0.0, 0.06, 0.3])
def test_shards_give_the_batches_of_a_token_file(made, packing, processes, fraction):
    folder, path = made
    config = DataConfig(
        source=str(path), packing=packing, sequence_length=9, batch_size=4, valid_fraction=fraction
    )
    for split in ("train", "valid") if fraction else ("train",):
        for process in range(processes):
            expected, given = (
                open_pipeline(dataclasses.replace(config, source=str(s)), split, process, processes)
                for s in (path, folder)
            )
            assert given.num_batches == expected.num_batches
            count = given.num_batches if split == "valid" else 3 * given.num_batches
            for index in range(count):
                batch, wanted = given.batch(index), expected.batch(index)
                assert batch.keys() == wanted.keys()
                for key, value in wanted.items():
                    np.testing.assert_array_equal(batch[key], value)
                    assert batch[key].dtype == value.dtype
        assert given.unigram_bits_per_byte() == expected.unigram_bits_per_byte()
        assert given.tokenizer.fingerprint == expected.tokenizer.fingerprint


def test_every_piece_and_every_document_start(made):
    (shards, _), (array, _) = (
        token_shards.open_token_shards(made[0]),
        token_files.open_token_file(made[1]),
    )
    assert len(shards) == len(array)
    for first in range(len(array)):
        for last in (first, first + 1, first + 7, first + 40):
            last = min(last, len(array))
            one, other = (
                store.checked_piece(first, last, documents=True) for store in (shards, array)
            )
            np.testing.assert_array_equal(one.tokens, other.tokens)
            np.testing.assert_array_equal(document_numbers(one), document_numbers(other))
    starts = token_shards.DocumentStarts(shards.shards)
    assert [starts[index] for index in range(len(starts))] == array.starts.tolist()
    part = shards.cut(11, 150).cut(2, 100)
    np.testing.assert_array_equal(part.read(0, 98), array.read(13, 111))


def test_few_readers_stay_open_and_all_are_right(made, monkeypatch):
    monkeypatch.setattr(token_shards, "OPEN_SHARDS", 1)
    store, _ = token_shards.open_token_shards(made[0])
    whole = store.read(0, len(store)).astype(np.uint16)
    array, _ = token_files.open_token_file(made[1])
    assert checksum_of(whole, None) == checksum_of(np.asarray(array.tokens), None)


def test_fingerprints_follow_the_shards(made, monkeypatch):
    config = DataConfig(source=str(made[0]), sequence_length=9, batch_size=4)
    before = open_pipeline(config).fingerprint
    assert open_pipeline(config, process_index=1, process_count=2).fingerprint == before
    assert open_pipeline(dataclasses.replace(config, seed=1)).fingerprint != before
    monkeypatch.setattr(token_files, "VERIFIED_BYTES", 0)
    change(made[0], lambda facts: facts["shards"][0].update(checksum="other"))
    assert open_pipeline(config).fingerprint != before


def change(folder, function):
    sidecar = folder / "tokens.json"
    facts = json.loads(sidecar.read_text())
    function(facts)
    sidecar.write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda f: f.update(num_tokens=1), r"tokens.json: num_tokens is 1 but its shards have \d+"),
        (lambda f: f.update(num_documents=None), "num_documents is None but its shards have 14"),
        (lambda f: f.pop("shards"), "shards is None; allowed: a list of at least one shard"),
        (lambda f: f["shards"][1].pop("checksum"), "shard 1 is .*; needed: num_tokens, num_doc"),
        (lambda f: f["shards"][2].update(num_bytes="x"), "shard 2 is"),
        (lambda f: f.update(record_tokens=0), "record_tokens is 0; allowed: an integer >= 1"),
        (lambda f: f.update(vocab_size=7), "vocab_size is 7 but tokenizer 'bytes' has 256 tokens"),
        (
            lambda f: f["shards"][2].update(num_bytes=7),
            "00002-of-00005.* has .* tokens.json says 7",
        ),
        (lambda f: f["shards"][3].update(checksum="0"), "its checksum is not the one in tokens.js"),
    ],
)
def test_sidecars_that_disagree(made, function, message):
    change(made[0], function)
    with pytest.raises(ValueError, match=message) as caught:
        open_pipeline(DataConfig(source=str(made[0]), sequence_length=9))
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_shards(made, monkeypatch):
    config = DataConfig(source=str(made[0]), sequence_length=9, batch_size=1, valid_fraction=0.0)
    path = token_shards.shard_path(made[0], 2, len(LENGTHS))
    content = bytearray(path.read_bytes())
    content[content.index(make_documents()[2][4].astype("<u2")[1:4].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its checksum"):
        open_pipeline(config)
    # Of large datasets only what is read is checked, by the checksums in the file.
    monkeypatch.setattr(token_files, "VERIFIED_BYTES", 0)
    pipeline = open_pipeline(config)
    with pytest.raises(ValueError, match=r"00002-of-00005.array_record is damaged in records"):
        [pipeline.batch(index) for index in range(pipeline.num_batches)]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"00002.* is missing, one of 5 shards"):
        open_pipeline(config)
    (made[0] / "tokens.json").unlink()
    (made[0] / token_shards.PLAN).write_text("{}")
    with pytest.raises(ValueError, match=r"not finished; run experiments.prepare_shards again"):
        open_pipeline(config)
