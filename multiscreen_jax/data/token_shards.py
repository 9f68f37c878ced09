"""Token shards: a folder of ArrayRecord files that give the rows of one stream of tokens by index.

`FOLDER/tokens-00003-of-00064.array_record` holds whole documents, each with its end-of-document
token, in the order of the corpus; shard after shard they are the stream that a .bin of the same
corpus holds. Its records are pieces of `record_tokens` tokens (the last one of a shard is shorter),
so that any window is found by arithmetic and costs reading the one or two records around it,
however long documents are and however many shards there are. A record is little-endian:

    int64 [2]    documents of the shard that begin before this record; n, those that begin in it
    uint32 [n]   where in the record they begin
    tokens       uint16 or uint32
    byte counts  uint8, uint16 or uint32, whichever holds those of the record: the bytes of text
                 behind each token, of tokenizers without byte_lengths

which packs documents (segment_ids) with no other read and no table in memory. `FOLDER/tokens.json`
is written last and holds what the sidecar of a .bin holds (see token_files), record_tokens, and for
every shard num_tokens, num_documents, num_bytes and checksum (16-byte BLAKE2b of the file, in hex);
where there are byte counts, also text_bytes and lost_bytes (those the tokenizer lost as unknown).
Opening reads that file and lists the folder; shards are opened when a row needs them.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multiscreen_jax.data import token_files
from multiscreen_jax.data.config import import_package
from multiscreen_jax.data.packing import (
    Piece,
    TokenStore,
    cut_checksum,
    split_point,
    token_dtype,
)
from multiscreen_jax.data.tokenizers import Encoded, Tokenizer
from multiscreen_jax.paths import refuse_lfs_pointer

RECORD_TOKENS = 1 << 14  # 32 or 64 KB: few records to index, and little to read beside a row
BYTE_SUMS = ("text_bytes", "lost_bytes")  # of a shard with byte counts
OPEN_SHARDS = 256  # readers kept open, each with a file descriptor and 8 bytes per record
PLAN = "tokens.plan.json"  # of the program that makes the shards, there before tokens.json
COUNTS = ("num_tokens", "num_documents", "num_bytes")
COUNT_WIDTHS = (0, 1, 2, 4)  # bytes of a byte count in a record; 0 where there are none
# One record a chunk, as random access wants it; uncompressed, so that reading costs no decoding.
WRITER_OPTIONS = "group_size:1,uncompressed"
READER_OPTIONS = "readahead_buffer_size:0"


def shard_path(folder: Path, index: int, count: int) -> Path:
    return folder / f"tokens-{index:05}-of-{count:05}.array_record"


def with_end(encoded: Encoded, eos_id: int, dtype: np.dtype) -> np.ndarray:
    """A document for `write_shard`: its tokens, then eos_id, with byte counts where it has them."""
    if encoded.byte_counts is None:
        return np.append(encoded.tokens, eos_id).astype(dtype)
    document = np.zeros(len(encoded.tokens) + 1, counted(dtype))
    document["tokens"] = np.append(encoded.tokens, eos_id)
    document["byte_counts"][:-1] = encoded.byte_counts
    return document


def counted(dtype: np.dtype) -> np.dtype:
    """The dtype of tokens with their byte counts."""
    return np.dtype([("tokens", dtype.newbyteorder("<")), ("byte_counts", "<u4")])


def write_shard(
    path: Path, documents: Iterable[np.ndarray], dtype: np.dtype, record_tokens: int
) -> tuple[int, int]:
    """Writes documents (tokens with their end, never empty); returns (tokens, documents).

    Their dtype is that of the tokens, or `counted` of it with byte counts.
    """
    module = import_package("array_record.python.array_record_module", f"writing {path}")
    writer = module.ArrayRecordWriter(str(path), WRITER_OPTIONS)
    record = np.empty(record_tokens, dtype.newbyteorder("<"))
    filled, records, before = 0, 0, 0
    starts: list[int] = []
    for document in documents:
        starts.append(filled)
        while len(document):
            taken, document = np.split(document, [record_tokens - filled])
            record[filled : filled + len(taken)] = taken
            filled += len(taken)
            if filled == record_tokens:
                writer.write(_pack(before, starts, record))
                before, records = before + len(starts), records + 1
                filled, starts = 0, []
    if filled:
        writer.write(_pack(before, starts, record[:filled]))
    writer.close()
    return records * record_tokens + filled, before + len(starts)


def _pack(before: int, starts: list[int], tokens: np.ndarray) -> bytes:
    header = np.array([before, len(starts)], "<i8").tobytes()
    header += np.array(starts, "<u4").tobytes()
    if tokens.dtype.fields is None:
        return header + tokens.tobytes()
    counts = tokens["byte_counts"]
    counts = counts.astype(np.min_scalar_type(int(counts.max())).newbyteorder("<"))
    return header + tokens["tokens"].tobytes() + counts.tobytes()


class _Record(NamedTuple):
    """Attributes: documents that begin before it, where in it others begin, and what it holds."""

    before: int
    starts: np.ndarray
    tokens: np.ndarray
    byte_counts: np.ndarray | None


def _unpack(record: bytes, dtype: np.dtype, length: int) -> _Record:
    """A record of so many tokens; ValueError if it has not the bytes for them."""
    before, count = (int(number) for number in np.frombuffer(record, "<i8", 2))
    starts = np.frombuffer(record, "<u4", count, offset=16)
    place = 16 + 4 * count
    tokens = np.frombuffer(record, dtype, length, offset=place)
    place += tokens.nbytes
    width = (len(record) - place) / length
    if width not in COUNT_WIDTHS:
        raise ValueError(f"{len(record)} bytes are no record of {length} tokens")
    counts = np.frombuffer(record, f"<u{int(width)}", offset=place) if width else None
    return _Record(before, starts, tokens, counts)


def finish_token_shards(
    folder: Path, record_tokens: int, tokenizer: Tokenizer, shards: list[dict[str, Any]]
) -> None:
    """Writes tokens.json beside complete shards, atomically."""
    dtype = token_dtype(tokenizer.vocab_size)
    facts = {
        **token_files.tokenizer_facts(folder, dtype, tokenizer),
        "num_tokens": sum(shard["num_tokens"] for shard in shards),
        "num_documents": sum(shard["num_documents"] for shard in shards),
        "record_tokens": record_tokens,
        "shards": shards,
    }
    if tokenizer.byte_lengths is None:
        text_bytes, lost = (sum(shard[key] for shard in shards) for key in BYTE_SUMS)
        facts["lost_share"] = lost / max(1, text_bytes)
    sidecar = token_files.sidecar_path(folder)
    partial = sidecar.with_suffix(".partial")
    partial.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    partial.replace(sidecar)


class Shards:
    """The records of all shards as one stream. Reading is thread-safe.

    Attributes:
      paths: the files, in order.
      token_ends, document_ends: tokens and documents up to the end of each shard, int64 [shards].
    """

    def __init__(self, paths: list[Path], facts: dict[str, Any]):
        self.paths = paths
        self.token_ends = np.cumsum([shard["num_tokens"] for shard in facts["shards"]])
        self.document_ends = np.cumsum([shard["num_documents"] for shard in facts["shards"]])
        self._dtype = np.dtype(facts["dtype"]).newbyteorder("<")
        self._record_tokens = facts["record_tokens"]
        self._counts_bytes = "lost_share" in facts
        self._open = functools.lru_cache(OPEN_SHARDS)(self._open_reader)

    def piece(self, first: int, last: int) -> Piece:
        """Tokens [first, last), and where the documents begin that the records read hold."""
        low = int(np.searchsorted(self.token_ends, first, side="right"))
        high = int(np.searchsorted(self.token_ends, last, side="left"))
        none = np.empty(0, np.uint8) if self._counts_bytes else None
        parts = [Piece(np.empty(0, self._dtype), np.empty(0, np.int64), none)]
        for shard in range(low, high + 1) if first < last else ():
            end = int(self.token_ends[shard])
            begin = int(self.token_ends[shard - 1]) if shard else 0
            if begin < end:  # shards may be empty
                part = self._read(shard, max(first, begin) - begin, min(last, end) - begin)
                parts.append(part._replace(starts=part.starts + begin))
        return _joined(parts)

    def document_start(self, index: int) -> int:
        """Where in the stream a document begins; reads a few records to find it."""
        shard = int(np.searchsorted(self.document_ends, index, side="right"))
        begin = int(self.token_ends[shard - 1]) if shard else 0
        index -= int(self.document_ends[shard - 1]) if shard else 0
        size, length = self._record_tokens, int(self.token_ends[shard]) - begin
        records = range(-(-length // size))

        def documents_before(number: int) -> int:
            return self._records(shard, number, number + 1)[0].before

        number = bisect.bisect_right(records, index, key=documents_before) - 1
        record = self._records(shard, number, number + 1)[0]
        return begin + number * size + int(record.starts[index - record.before])

    def _read(self, shard: int, first: int, last: int) -> Piece:
        """Tokens [first, last) of one shard, at least one, and starts in the records around."""
        size = self._record_tokens
        low, high = first // size, -(-last // size)
        whole = _joined(
            [
                Piece(record.tokens, record.starts.astype(np.int64) + number * size, counts)
                for number, record in enumerate(self._records(shard, low, high), start=low)
                for counts in [record.byte_counts if self._counts_bytes else None]
            ]
        )
        inside = slice(first - low * size, last - low * size)
        counts = None if whole.byte_counts is None else whole.byte_counts[inside]
        return Piece(whole.tokens[inside], whole.starts, counts)

    def _records(self, shard: int, first: int, last: int) -> list[_Record]:
        """Records [first, last) of one shard, at least one."""
        path = self.paths[shard]
        size, begin = self._record_tokens, int(self.token_ends[shard - 1]) if shard else 0
        length = int(self.token_ends[shard]) - begin
        try:
            return [
                _unpack(record, self._dtype, min(size, length - number * size))
                for number, record in enumerate(self._open(path).read(first, last), start=first)
            ]
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            where = f"{path} is damaged in records {first} to {last - 1}"
            raise ValueError(f"{where}: {reason}") from None

    def _open_reader(self, path: Path) -> Any:
        module = import_package("array_record.python.array_record_module", f"reading {path}")
        return module.ArrayRecordReader(
            str(path), options=READER_OPTIONS, file_reader_buffer_size=1 << 15
        )


def _joined(parts: list[Piece]) -> Piece:
    """Pieces one after another, as one; all have byte counts, or none."""
    tokens, starts, counts = zip(*parts, strict=True)
    joined = None if counts[0] is None else np.concatenate(counts)
    return Piece(np.concatenate(tokens), np.concatenate(starts), joined)


@dataclass(frozen=True)
class ShardStore(TokenStore):
    """The part [first, last) of the stream in token shards."""

    name: str
    shards: Shards
    first: int
    last: int
    vocab_size: int
    checksum: str
    counts_bytes: bool
    lost_share: float
    knows_documents = True

    def __len__(self) -> int:
        return self.last - self.first

    def piece(self, first: int, last: int, documents: bool) -> Piece:
        first, last = first + self.first, last + self.first
        piece = self.shards.piece(first, last)
        assert piece.starts is not None
        inside = (piece.starts > first) & (piece.starts < last)
        return piece._replace(starts=piece.starts[inside] - first)

    def split_point(self, fraction: float) -> int:
        return split_point(DocumentStarts(self.shards), len(self), fraction)

    def cut(self, first: int, last: int) -> ShardStore:
        checksum = cut_checksum(self.checksum, first, last)
        first, last = first + self.first, last + self.first
        return replace(self, first=first, last=last, checksum=checksum)


@dataclass(frozen=True)
class DocumentStarts:
    """The starts of all documents, of which only those asked for are read."""

    shards: Shards

    def __len__(self) -> int:
        return int(self.shards.document_ends[-1])

    def __getitem__(self, index: int) -> int:
        return self.shards.document_start(index)


def open_token_shards(folder: Path) -> tuple[ShardStore, Tokenizer]:
    """Opens the shards of a folder and the tokenizer its tokens.json names.

    ValueError or FileNotFoundError, in one line, if tokens.json and the files disagree.
    """
    facts = token_files.read_sidecar(folder)
    _check_counts(token_files.sidecar_path(folder), facts)
    tokenizer = token_files.tokenizer_of(folder, facts)
    listed = facts["shards"]
    paths = [shard_path(folder, index, len(listed)) for index in range(len(listed))]
    # One listing instead of a look at every file, which a mounted bucket answers one by one.
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
    for path, shard in zip(paths, listed, strict=True):
        if path.name not in sizes:
            raise FileNotFoundError(f"{path} is missing, one of {len(listed)} shards")
        if sizes[path.name] != shard["num_bytes"]:
            refuse_lfs_pointer(path)
            raise ValueError(
                f"{path} is damaged: it has {sizes[path.name]} bytes but tokens.json says "
                f"{shard['num_bytes']}"
            )
        if shard["num_tokens"] * np.dtype(facts["dtype"]).itemsize > shard["num_bytes"]:
            raise ValueError(
                f"{path} cannot hold the {shard['num_tokens']} tokens that tokens.json says"
            )
    if sum(shard["num_bytes"] for shard in listed) <= token_files.VERIFIED_BYTES:
        for path, shard in zip(paths, listed, strict=True):
            if token_files.file_checksum(path) != shard["checksum"]:
                raise ValueError(f"{path} is damaged: its checksum is not the one in tokens.json")
    digest = hashlib.blake2b(repr([s["checksum"] for s in listed]).encode(), digest_size=16)
    store = ShardStore(
        name=str(folder),
        shards=Shards(paths, facts),
        first=0,
        last=facts["num_tokens"],
        vocab_size=facts["vocab_size"],
        checksum=digest.hexdigest(),
        counts_bytes="lost_share" in facts,
        lost_share=facts.get("lost_share", 0.0),
    )
    return store, tokenizer


def _check_counts(sidecar: Path, facts: dict[str, Any]) -> None:
    shards, size = facts.get("shards"), facts.get("record_tokens")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"{sidecar}: record_tokens is {size!r}; allowed: an integer >= 1")
    if not isinstance(shards, list) or not shards:
        raise ValueError(f"{sidecar}: shards is {shards!r}; allowed: a list of at least one shard")
    for index, shard in enumerate(shards):
        counts = [shard.get(key) for key in COUNTS] if isinstance(shard, dict) else [None]
        whole = all(type(count) is int and count >= 0 for count in counts)
        if not whole or not isinstance(shard.get("checksum"), str):
            raise ValueError(
                f"{sidecar}: shard {index} is {shard!r}; needed: {', '.join(COUNTS)}, checksum"
            )
    for key in ("num_tokens", "num_documents"):
        total = sum(shard[key] for shard in shards)
        if facts.get(key) != total:
            raise ValueError(f"{sidecar}: {key} is {facts.get(key)!r} but its shards have {total}")
