"""Token shards: a folder of ArrayRecord files that give the rows of one stream of tokens by index.

`FOLDER/tokens-00003-of-00064.array_record` holds whole documents, each with its end-of-document
token, in the order of the corpus; shard after shard they are the stream that a .bin of the same
corpus holds. Its records are pieces of `record_tokens` tokens (the last one of a shard is shorter),
so that any window is found by arithmetic and costs reading the one or two records around it,
however long documents are and however many shards there are. A record is little-endian:

    int64 [2]    documents of the shard that begin before this record; n, those that begin in it
    uint32 [n]   where in the record they begin
    tokens       uint16 or uint32

which packs documents (segment_ids) with no other read and no table in memory. `FOLDER/tokens.json`
is written last and holds what the sidecar of a .bin holds (see token_files), record_tokens, and for
every shard num_tokens, num_documents, num_bytes and checksum (16-byte BLAKE2b of the file, in hex).
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
from typing import Any

import numpy as np

from multiscreen_jax.data import token_files
from multiscreen_jax.data.config import import_package
from multiscreen_jax.data.packing import TokenStore, cut_checksum, split_point, token_dtype
from multiscreen_jax.data.tokenizers import Tokenizer

RECORD_TOKENS = 1 << 14  # 32 or 64 KB: few records to index, and little to read beside a row
OPEN_SHARDS = 256  # readers kept open, each with a file descriptor and 8 bytes per record
PLAN = "tokens.plan.json"  # of the program that makes the shards, there before tokens.json
COUNTS = ("num_tokens", "num_documents", "num_bytes")
# One record a chunk, as random access wants it; uncompressed, so that reading costs no decoding.
WRITER_OPTIONS = "group_size:1,uncompressed"
READER_OPTIONS = "readahead_buffer_size:0"


def shard_path(folder: Path, index: int, count: int) -> Path:
    return folder / f"tokens-{index:05}-of-{count:05}.array_record"


def write_shard(
    path: Path, documents: Iterable[np.ndarray], dtype: np.dtype, record_tokens: int
) -> tuple[int, int]:
    """Writes documents (tokens with their end, never empty); returns (tokens, documents)."""
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
    return header + np.array(starts, "<u4").tobytes() + tokens.tobytes()


def _unpack(record: bytes, dtype: np.dtype) -> tuple[int, np.ndarray, np.ndarray]:
    """(documents before, starts in the record, tokens)."""
    before, count = (int(number) for number in np.frombuffer(record, "<i8", 2))
    starts = np.frombuffer(record, "<u4", count, offset=16)
    return before, starts, np.frombuffer(record, dtype, offset=16 + 4 * count)


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
        self._open = functools.lru_cache(OPEN_SHARDS)(self._open_reader)

    def piece(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [first, last), and the documents that begin in the records read for them."""
        low = int(np.searchsorted(self.token_ends, first, side="right"))
        high = int(np.searchsorted(self.token_ends, last, side="left"))
        tokens, starts = [np.empty(0, self._dtype)], [np.empty(0, np.int64)]
        for shard in range(low, high + 1) if first < last else ():
            end = int(self.token_ends[shard])
            begin = int(self.token_ends[shard - 1]) if shard else 0
            part = self._read(shard, max(first, begin) - begin, min(last, end) - begin)
            tokens.append(part[0])
            starts.append(part[1] + begin)
        return np.concatenate(tokens), np.concatenate(starts)

    def document_start(self, index: int) -> int:
        """Where in the stream a document begins; reads a few records to find it."""
        shard = int(np.searchsorted(self.document_ends, index, side="right"))
        begin = int(self.token_ends[shard - 1]) if shard else 0
        index -= int(self.document_ends[shard - 1]) if shard else 0
        size, length = self._record_tokens, int(self.token_ends[shard]) - begin
        records = range(-(-length // size))

        def documents_before(number: int) -> int:
            return self._records(shard, number, number + 1)[0][0]

        number = bisect.bisect_right(records, index, key=documents_before) - 1
        before, starts, _ = self._records(shard, number, number + 1)[0]
        return begin + number * size + int(starts[index - before])

    def _read(self, shard: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [first, last) of one shard, and the starts in the records around them."""
        size = self._record_tokens
        low, high = first // size, -(-last // size)
        records = self._records(shard, low, high)
        tokens = [tokens for _, _, tokens in records]
        starts = [
            starts.astype(np.int64) + number * size
            for number, (_, starts, _) in enumerate(records, start=low)
        ]
        whole = np.concatenate(tokens) if tokens else np.empty(0, self._dtype)
        places = np.concatenate(starts) if starts else np.empty(0, np.int64)
        return whole[first - low * size : last - low * size], places

    def _records(
        self, shard: int, first: int, last: int
    ) -> list[tuple[int, np.ndarray, np.ndarray]]:
        if first == last:
            return []
        path = self.paths[shard]
        try:
            records = self._open(path).read(first, last)
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            where = f"{path} is damaged in records {first} to {last - 1}"
            raise ValueError(f"{where}: {reason}") from None
        return [_unpack(record, self._dtype) for record in records]

    def _open_reader(self, path: Path) -> Any:
        module = import_package("array_record.python.array_record_module", f"reading {path}")
        return module.ArrayRecordReader(
            str(path), options=READER_OPTIONS, file_reader_buffer_size=1 << 15
        )


@dataclass(frozen=True)
class ShardStore(TokenStore):
    """The part [first, last) of the stream in token shards."""

    name: str
    shards: Shards
    first: int
    last: int
    vocab_size: int
    checksum: str
    knows_documents = True

    def __len__(self) -> int:
        return self.last - self.first

    def piece(self, first: int, last: int, documents: bool) -> tuple[np.ndarray, np.ndarray | None]:
        first, last = first + self.first, last + self.first
        tokens, starts = self.shards.piece(first, last)
        return tokens, starts[(starts > first) & (starts < last)] - first

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
    tokenizer = token_files.open_own_tokenizer(folder)
    listed = facts["shards"]
    paths = [shard_path(folder, index, len(listed)) for index in range(len(listed))]
    # One listing instead of a look at every file, which a mounted bucket answers one by one.
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
    for path, shard in zip(paths, listed, strict=True):
        if path.name not in sizes:
            raise FileNotFoundError(f"{path} is missing, one of {len(listed)} shards")
        if sizes[path.name] != shard["num_bytes"]:
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
