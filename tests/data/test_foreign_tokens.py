"""Token files as llm.c and Megatron write them, and dtypes that cannot be right."""

import json
import struct

import numpy as np
import pytest

from multiscreen_jax.data import DataConfig, open_pipeline
from multiscreen_jax.data.token_files import documents_path, open_token_file, sidecar_path
from tests.data.corpora import write_tokens

TOKENS = (np.arange(400) * 37 % 250 + 1).astype(np.int64)
LENGTHS = [30, 0, 50, 120, 200]
BOUNDS = [0, 1, 2, 4, 5]  # the second document is empty, the third has two sequences
STARTS = [0, 30, 200]


def llm_c(path, tokens=TOKENS, magic=20240520, version=1, count=None, **facts):
    dtype = {20240801: "uint32"}.get(magic, "uint16")
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    path.write_bytes(header.tobytes() + np.asarray(tokens, dtype).tobytes())
    sidecar(path, **{"dtype": dtype, **facts})
    return path


def megatron(path, tokens=TOKENS, code=8, lengths=LENGTHS, bounds=BOUNDS, version=1, **facts):
    dtype = np.dtype({1: "u1", 4: "<i4", 5: "<i8", 8: "<u2"}.get(code, "<u2"))
    path.write_bytes(np.asarray(tokens, dtype).tobytes())
    places = (np.cumsum(lengths) - lengths) * dtype.itemsize
    header = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", version, code, len(lengths), len(bounds))
    parts = [np.asarray(lengths, "<i4"), np.asarray(places, "<i8"), np.asarray(bounds, "<i8")]
    path.with_suffix(".idx").write_bytes(header + b"".join(part.tobytes() for part in parts))
    sidecar(path, **facts)
    return path


def sidecar(path, **facts):
    facts = {"vocab_size": 256, "tokenizer": "bytes", **facts}
    facts = {key: value for key, value in facts.items() if value is not None}
    path.with_suffix(".json").write_text(json.dumps(facts))


@pytest.mark.parametrize("magic", [20240520, 20240801])
@pytest.mark.parametrize("stated", [True, False])
def test_llm_c_files_are_read_without_their_header(tmp_path, magic, stated):
    path = llm_c(tmp_path / "a.bin", magic=magic)
    if not stated:
        sidecar(path)
    store, _ = open_token_file(path)
    np.testing.assert_array_equal(store.read(0, len(store)), TOKENS)
    assert store.tokens.dtype == {20240520: np.uint16, 20240801: np.uint32}[magic]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "uint32"}, "dtype is uint32, but the header in a.bin says uint16"),
        ({"count": 401}, "its llm.c header counts 401 uint16 tokens, 400 follow"),
        ({"magic": 20240522}, "llm.c header of multiple-choice questions; allowed: tokens"),
        ({"magic": 20240326}, "llm.c header of model weights"),
    ],
)
def test_llm_c_files_that_disagree(tmp_path, change, said):
    with pytest.raises(ValueError, match=said) as caught:
        open_token_file(llm_c(tmp_path / "a.bin", **change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("code", [4, 8])
@pytest.mark.parametrize("dtype", [None, "stated"])
def test_megatron_indices_give_dtype_and_documents(tmp_path, code, dtype):
    stated = {4: "uint32", 8: "uint16"}[code]
    path = megatron(tmp_path / "a.bin", code=code, dtype=dtype and stated)
    store, _ = open_token_file(path, segments=True)
    np.testing.assert_array_equal(store.read(0, 400), TOKENS)
    np.testing.assert_array_equal(store.starts, STARTS)
    shape = {"sequence_length": 399, "batch_size": 1, "valid_fraction": 0.0}
    packed = open_pipeline(DataConfig(source=str(path), packing="segments", **shape))
    segments = np.repeat([1, 2, 3], np.diff([*STARTS, 400]))
    np.testing.assert_array_equal(packed.batch(0)["segment_ids"], segments[None])
    assert "segment_ids" not in open_pipeline(DataConfig(source=str(path), **shape)).batch(0)


def test_a_stream_is_the_same_with_and_without_an_index(tmp_path):
    path = megatron(tmp_path / "a.bin", dtype="uint16")
    config = DataConfig(source=str(path), sequence_length=16, batch_size=4)
    with_index = open_pipeline(config).fingerprint
    path.with_suffix(".idx").unlink()
    assert open_pipeline(config).fingerprint == with_index


def test_own_document_starts_come_before_an_index(tmp_path):
    path = megatron(tmp_path / "a.bin", dtype="uint16", num_documents=2)
    np.save(documents_path(path), np.array([0, 7]))
    assert open_token_file(path, segments=True)[0].starts.tolist() == [0, 7]


def cut_index(path):
    index = path.with_suffix(".idx")
    index.write_bytes(index.read_bytes()[:-1])


def cut_header(path):
    path.with_suffix(".idx").write_bytes(b"MMIDIDX\0\0\1")


def many_sequences(path):
    header = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, 1 << 60, 1 << 60)
    path.with_suffix(".idx").write_bytes(header)


def other_places(path):
    index = path.with_suffix(".idx")
    content = bytearray(index.read_bytes())
    content[34 + 4 * len(LENGTHS) + 8] += 2  # where the second sequence begins
    index.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "damage", "said"),
    [
        ({"code": 5}, None, "a.idx: dtype is 'int64'; allowed: uint16, uint32, int32"),
        ({"code": 1}, None, "a.idx: dtype is 'uint8'"),
        ({"code": 77}, None, "a.idx: dtype is 'code 77'"),
        ({"dtype": "uint32"}, None, "dtype is uint32, but the header in a.idx says uint16"),
        ({"version": 2}, None, "a.idx is of version 2; allowed: version 1"),
        ({"lengths": [400, 1], "bounds": [0, 2]}, None, "counts 401 tokens, but the .bin has 400"),
        ({"bounds": [0, 3, 2, 5]}, None, "document bounds must ascend from 0 to 5"),
        ({"bounds": [0, 9]}, None, "document bounds must ascend from 0 to 5"),
        ({"bounds": []}, None, "document bounds must ascend from 0 to 5"),
        ({"lengths": [401, -1], "bounds": [0, 2]}, None, "do not follow each other"),
        ({}, cut_index, "5 sequences and 5 document bounds need 134 bytes, it has 133"),
        ({}, cut_header, "a.idx is damaged: it ends inside its header"),
        ({}, many_sequences, "a.idx is damaged: 1152921504606846976 sequences"),
        ({}, other_places, "its sequences do not follow each other; allowed: in order"),
    ],
)
def test_megatron_files_that_disagree(tmp_path, change, damage, said):
    path = megatron(tmp_path / "a.bin", **change)
    if damage is not None:
        damage(path)
    with pytest.raises(ValueError, match=said) as caught:
        open_token_file(path, segments=True)
    assert "\n" not in str(caught.value)


def test_an_idx_of_another_kind_is_left_alone(tmp_path):
    path = write_tokens(tmp_path / "a.bin", TOKENS)
    path.with_suffix(".idx").write_bytes(b"something else")
    assert len(open_token_file(path)[0]) == 400


def written_as(path, written, read, tokens=TOKENS, **facts):
    write_tokens(path, tokens.astype(written).view(read), np.dtype(read).name, **facts)
    return path


@pytest.mark.parametrize(
    ("written", "read", "said"),
    [
        ("<u4", "<u2", "of every two uint16 tokens one is at most 0, as in a file of uint32"),
        ("<i8", "<u4", "of every two uint32 tokens one is at most 0, as in a file of uint64"),
        ("<i8", "<u2", "of every two uint16 tokens one is at most 0"),
        ("<u2", "<u4", "; read as uint16 every token is allowed: say so in the sidecar"),
        (">u2", "<u2", "; read as big-endian every token is allowed"),
        (">u4", "<u4", "; read as big-endian every token is allowed"),
    ],
)
def test_wrong_widths_are_noticed(tmp_path, written, read, said):
    path = written_as(tmp_path / "a.bin", written, read)
    with pytest.raises(ValueError, match=said) as caught:
        open_token_file(path)
    assert "\n" not in str(caught.value)


def test_a_large_vocabulary_read_too_narrow(tmp_path):
    tokens = TOKENS * 500  # up to 125,000, as of a vocabulary of 128,000
    path = tmp_path / "a.bin"
    alphabet = "".join(map(chr, [*range(1, 0xD800), *range(0xE000, 0x11000 - 1)]))
    facts = {"vocab_size": len(alphabet) + 1, "tokenizer": "characters", "alphabet": alphabet}
    with pytest.raises(ValueError, match="of every two uint16 tokens one is at most 1"):
        open_token_file(written_as(path, "<u4", "<u2", tokens, **facts))


def test_int32_without_negative_tokens_is_read(tmp_path):
    path = write_tokens(tmp_path / "a.bin", TOKENS, "int32")
    np.testing.assert_array_equal(open_token_file(path)[0].read(0, 400), TOKENS)
    write_tokens(path, [*TOKENS, -5], "int32")
    with pytest.raises(
        ValueError, match=r"token 400 is 4294967291; allowed: .*int32 one is -5, and no"
    ):
        open_token_file(path)


def test_alternating_tokens_are_taken_where_they_are_counted(tmp_path):
    tokens = TOKENS.copy()
    tokens[1::2] = 0
    path = write_tokens(tmp_path / "a.bin", tokens)
    with pytest.raises(ValueError, match=r"one is at most 0.*or, if this is right, num_tokens"):
        open_token_file(path)
    write_tokens(path, tokens, num_tokens=400)
    assert len(open_token_file(path)[0]) == 400


def test_other_files_by_that_name(tmp_path):
    path = write_tokens(tmp_path / "a.bin", TOKENS)
    np.save(tmp_path / "a.npy", TOKENS)
    (tmp_path / "a.npy").rename(path)
    with pytest.raises(ValueError, match=r"a\.bin is a \.npy file of numpy; allowed: tokens alone"):
        open_token_file(path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"
    path.write_text(pointer)
    with pytest.raises(ValueError, match=r"a\.bin is a git-lfs pointer, not the file itself"):
        open_token_file(path)
    write_tokens(path, TOKENS)
    sidecar_path(path).write_text(pointer)
    with pytest.raises(ValueError, match=r"a\.json is a git-lfs pointer, not the file itself"):
        open_token_file(path)
    write_tokens(path, TOKENS, num_documents=1)
    documents_path(path).write_text(pointer)
    with pytest.raises(ValueError, match=r"a\.documents\.npy is a git-lfs pointer"):
        open_token_file(path)
    path.with_suffix(".idx").write_text(pointer)
    with pytest.raises(ValueError, match=r"a\.idx is a git-lfs pointer"):
        open_token_file(path)
    path.with_suffix(".idx").unlink()
    write_tokens(path, TOKENS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="799 bytes are no whole number of uint16 tokens"):
        open_token_file(path)


@pytest.mark.parametrize("content", ["[]", "{", "[" * 10**5, '"x"', '{"vocab_size": 1e999}'])
def test_sidecars_that_are_none(tmp_path, content):
    path = write_tokens(tmp_path / "a.bin", TOKENS)
    sidecar_path(path).write_text(content)
    with pytest.raises(ValueError, match=r"a\.json: ") as caught:
        open_token_file(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("starts", [np.array([0.0]), np.array([0], "<u8"), np.array([[0]])])
def test_document_starts_of_another_kind(tmp_path, starts):
    path = write_tokens(tmp_path / "a.bin", TOKENS, num_documents=1)
    np.save(documents_path(path), starts)
    with pytest.raises(ValueError, match=r"a\.documents\.npy (holds|has)"):
        open_token_file(path)
