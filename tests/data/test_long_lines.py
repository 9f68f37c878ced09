"""Files that were packed to fill memory, and files that are damaged inside."""

import gzip
import json
import lzma
import tracemalloc

import pytest

from multiscreen_jax.data import sources
from multiscreen_jax.data.sources import file_extent, read_documents, read_file
from tests.data.corpora import TEXTS, write_array_record, write_json_lines, write_parquet

OPENERS = {".gz": gzip.open, ".xz": lzma.open}
NAMES = ["c.jsonl", "c.jsonl.gz", "c.jsonl.xz"]


def read(path):
    return [document.text for document in read_documents(str(path), "train")]


@pytest.mark.parametrize("name", NAMES)
def test_a_line_without_end_is_refused_before_it_is_held(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sources, "LONGEST", 1 << 16)
    path = tmp_path / name
    with OPENERS.get(path.suffix, open)(path, "wb") as file:
        file.write(b'{"text": "fine"}\n')
        for _ in range(100):
            file.write(b'{"text": "' + bytes(1 << 18))
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"{name}:2: a line of more than 65536 bytes; allowed"):
        read(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 24  # the dictionary of xz, and not 26 MB


@pytest.mark.parametrize("name", NAMES)
def test_parts_begin_after_long_lines_without_holding_them(tmp_path, monkeypatch, name):
    path = write_json_lines(tmp_path / name, [*TEXTS[:3], "x" * 999, *TEXTS[3:6]])
    extent = file_extent(path)
    whole = list(read_file(path))
    monkeypatch.setattr(sources, "LONGEST", 1100)
    parts = [read_file(path, "text", first, first + 50) for first in range(0, extent, 50)]
    assert [d.text for part in parts for d in part] == [d.text for d in whole]
    monkeypatch.setattr(sources, "LONGEST", 100)
    end = next(n for n, d in enumerate(whole) if d.text.startswith("x"))
    assert [d.text for d in read_file(path, "text", 900, extent)][-3:] == TEXTS[3:6]
    assert end == 3


def test_the_longest_line_that_is_allowed(tmp_path, monkeypatch):
    path = write_json_lines(tmp_path / "c.jsonl", ["a", "long" * 20])
    longest = max(len(line) for line in path.read_bytes().splitlines(keepends=True))
    monkeypatch.setattr(sources, "LONGEST", longest)
    assert len(read(path)) == 2
    monkeypatch.setattr(sources, "LONGEST", longest - 1)
    with pytest.raises(ValueError, match=r"c.jsonl:2: a line of more than"):
        read(path)


@pytest.mark.parametrize("write", [write_parquet, write_array_record])
def test_long_cells_and_records(tmp_path, monkeypatch, write):
    suffix = {"write_parquet": "parquet", "write_array_record": "array_record"}[write.__name__]
    path = write(tmp_path / f"c.{suffix}", ["fine", "x" * 200])
    monkeypatch.setattr(sources, "LONGEST", 199)
    with pytest.raises(ValueError, match=r"(row 2|record 1): a (text|record) of more than 199"):
        read(path)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_flipped_byte_in_a_compressed_file(tmp_path, name, share):
    path = write_json_lines(tmp_path / name, [text + str(hash(text)) for text in TEXTS])
    flip(path, int(share * path.stat().st_size))
    for function in (read, file_extent):
        with pytest.raises(ValueError, match=name) as caught:
            function(path)
        assert "\n" not in str(caught.value)


def test_a_flipped_byte_in_parquet_names_the_file(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "c.parquet"
    table = pyarrow.table({"text": TEXTS})
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    content = path.read_bytes()
    path.write_bytes(content[:60] + b"\xff" * 100 + content[160:])
    with pytest.raises(ValueError, match=r"c\.parquet") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_record_that_is_nested_or_has_a_thousand_fields(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": ' + "[" * 10**5 + "\n")
    with pytest.raises(ValueError, match=r"c.jsonl:1: JSON that cannot be read"):
        read(path)
    path.write_text(json.dumps({f"field\n{n}": n for n in range(1000)}))
    with pytest.raises(ValueError, match=r", 980 more$") as caught:
        read(path)
    assert "\n" not in str(caught.value)
