"""Rows of T + 1 tokens cut from one long stream of tokens, each computed from its index alone."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

CHUNK = 1 << 24  # tokens read at once when a whole store is scanned


class Starts(Protocol):
    """Where documents start: an array, or something that looks them up one at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> int: ...


class Piece(NamedTuple):
    """A part of a token store.

    Attributes:
      tokens: unsigned integers [n].
      starts: where in it documents start, ascending int64, from 1 on (what is at 0 needs no
        start); None where that was not asked for.
      byte_counts: bytes of text behind each token, unsigned [n]; None where the store has none.
    """

    tokens: np.ndarray
    starts: np.ndarray | None
    byte_counts: np.ndarray | None


class TokenStore(ABC):
    """Documents joined into one stream; every document ends with its end-of-document token.

    Attributes:
      name: where the tokens came from, for error messages.
      vocab_size: every token must be smaller.
      checksum: identifies tokens and documents.
      knows_documents: whether it is known where documents start.
      counts_bytes: whether it is known how many bytes of text are behind each token; needed for
        tokenizers without `byte_lengths`.
      lost_share: share of the bytes of its corpus that the tokenizer lost, see `Encoded`.
    """

    name: str
    vocab_size: int
    checksum: str
    knows_documents: bool
    counts_bytes: bool
    lost_share: float

    @abstractmethod
    def __len__(self) -> int:
        """Tokens in the stream."""

    @abstractmethod
    def piece(self, first: int, last: int, documents: bool) -> Piece:
        """Tokens [first, last), unchecked; where documents start in it, if asked for."""

    @abstractmethod
    def split_point(self, fraction: float) -> int:
        """First token of the held-out part: see the function of this name."""

    @abstractmethod
    def cut(self, first: int, last: int) -> TokenStore:
        """The part [first, last) as a store of its own, without copying tokens."""

    def check_ids(self, tokens: np.ndarray, first: int) -> None:
        """ValueError naming the first token of a piece that is not below vocab_size."""
        if len(tokens) and int(tokens.max()) >= self.vocab_size:
            where = int(np.argmax(tokens >= self.vocab_size))
            raise ValueError(
                f"{self.name}: token {first + where} is {int(tokens[where])}; "
                f"allowed: 0 to {self.vocab_size - 1} (vocab_size {self.vocab_size})"
            )

    def checked_piece(self, first: int, last: int, documents: bool) -> Piece:
        """The piece [first, last), its tokens checked against vocab_size."""
        piece = self.piece(first, last, documents)
        self.check_ids(piece.tokens, first)
        return piece

    def read(self, first: int, last: int) -> np.ndarray:
        """Tokens [first, last) as int32, checked against vocab_size."""
        return self.checked_piece(first, last, documents=False).tokens.astype(np.int32)

    def token_counts(self) -> np.ndarray:
        """How often each token occurs, int64 [vocab_size]; one scan of the store."""
        counts = np.zeros(self.vocab_size, np.int64)
        for first in range(0, len(self), CHUNK):
            tokens = self.read(first, min(first + CHUNK, len(self)))
            counts += np.bincount(tokens, minlength=self.vocab_size)
        return counts


def document_numbers(piece: Piece) -> np.ndarray:
    """The document of each token of a piece, counting from 1, int32."""
    assert piece.starts is not None
    numbers = 1 + np.searchsorted(piece.starts, np.arange(len(piece.tokens)), side="right")
    return numbers.astype(np.int32)


@dataclass(frozen=True)
class ArrayStore(TokenStore):
    """A store whose tokens are one array.

    Attributes:
      name, vocab_size, checksum, lost_share: see TokenStore.
      tokens: unsigned integers [N], in memory or memory-mapped.
      starts: index of each document's first token, ascending, int64 [documents], first 0;
        None where a token file does not know its documents.
      byte_counts: bytes of text behind each token, unsigned [N], or None.
    """

    name: str
    tokens: np.ndarray
    starts: np.ndarray | None
    vocab_size: int
    checksum: str
    byte_counts: np.ndarray | None = None
    lost_share: float = 0.0

    @property
    def knows_documents(self) -> bool:
        return self.starts is not None

    @property
    def counts_bytes(self) -> bool:
        return self.byte_counts is not None

    def __len__(self) -> int:
        return len(self.tokens)

    def piece(self, first: int, last: int, documents: bool) -> Piece:
        tokens = np.asarray(self.tokens[first:last])
        counts = None if self.byte_counts is None else np.asarray(self.byte_counts[first:last])
        if not documents or self.starts is None:
            return Piece(tokens, None, counts)
        low, high = np.searchsorted(self.starts, (first + 1, last))
        return Piece(tokens, self.starts[low:high] - first, counts)

    def split_point(self, fraction: float) -> int:
        return split_point(self.starts, len(self), fraction)

    def cut(self, first: int, last: int) -> ArrayStore:
        starts = None if self.starts is None else cut_starts(self.starts, first, last)
        counts = None if self.byte_counts is None else self.byte_counts[first:last]
        checksum = cut_checksum(self.checksum, first, last)
        tokens = self.tokens[first:last]
        return replace(self, tokens=tokens, starts=starts, checksum=checksum, byte_counts=counts)


def checksum_of(tokens: np.ndarray, starts: np.ndarray | None) -> str:
    """Hex digest of a token stream and its document starts (16 bytes of BLAKE2b)."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(tokens.dtype.str.encode())
    for first in range(0, len(tokens), CHUNK):
        digest.update(np.ascontiguousarray(tokens[first : first + CHUNK]).data)
    if starts is not None:
        digest.update(np.ascontiguousarray(starts, dtype=np.int64).data)
    return digest.hexdigest()


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every token of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def join_documents(
    name: str,
    documents: list[np.ndarray],
    eos_id: int,
    vocab_size: int,
    byte_counts: list[np.ndarray] | None = None,
    lost_share: float = 0.0,
) -> ArrayStore:
    """A store of tokenised documents, each followed by eos_id; empty documents are left out."""
    documents = [document for document in documents if len(document)]
    if not documents:
        raise ValueError(f"{name}: the corpus is empty; at least one document with text is needed")
    lengths = np.array([len(document) + 1 for document in documents], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    tokens = _joined(documents, starts, eos_id, token_dtype(vocab_size))
    checksum = checksum_of(tokens, starts)
    joined = None
    if byte_counts is not None:  # an end of a document is no text
        counts = [count for count in byte_counts if len(count)]
        joined = _joined(counts, starts, 0, np.result_type(*counts))
    return ArrayStore(name, tokens, starts, vocab_size, checksum, joined, lost_share)


def _joined(parts: list[np.ndarray], starts: np.ndarray, end: int, dtype: np.dtype) -> np.ndarray:
    """The parts, each followed by `end`, as one array."""
    joined = np.full(int(starts[-1]) + len(parts[-1]) + 1, end, dtype)
    for start, part in zip(starts, parts, strict=True):
        joined[start : start + len(part)] = part
    return joined


def split_point(starts: Starts | None, num_tokens: int, fraction: float) -> int:
    """First token of the held-out part.

    The last `fraction` of the documents, where that is at least one document; otherwise (few
    documents, or none known) the last `fraction` of the tokens.
    """
    held_out = 0 if starts is None else int(len(starts) * fraction)
    if starts is not None and 0 < held_out < len(starts):
        return int(starts[len(starts) - held_out])
    return num_tokens - int(num_tokens * fraction)


def cut_starts(starts: np.ndarray, first: int, last: int) -> np.ndarray:
    """Document starts of the part [first, last), relative to it; a cut document begins it."""
    inside = starts[(starts > first) & (starts < last)] - first
    return np.concatenate([[0], inside]).astype(np.int64)


def cut_checksum(checksum: str, first: int, last: int) -> str:
    """The checksum of the part [first, last) of a store."""
    return f"{checksum}[{first}:{last}]"


class WindowSource:
    """Random access to rows: row i holds tokens [i T, i T + T] of the stream.

    Consecutive rows share one token (the last target of one is the first input of the next),
    so every token but the stream's first is a target exactly once.

    With `complete` the last, shorter window is a row too, padded with token 0, and rows of
    padding follow until the number of rows is a multiple of `batch_size`: all rows then carry a
    loss_mask which is 0 on padding, so that every target counts exactly once.

    A row is a dict: tokens int32 [T+1]; segment_ids int32 [T+1] where asked for (documents
    count from 1 in each row, an end-of-document token belongs to the document it ends, 0 is
    padding); loss_mask float32 [T] with `complete`; target_bytes int32 [T], the bytes of text
    behind each target, where the store counts them.
    """

    def __init__(
        self,
        store: TokenStore,
        sequence_length: int,
        segments: bool = False,
        complete: bool = False,
        batch_size: int = 1,
    ):
        if segments and not store.knows_documents:
            raise ValueError(
                f"{store.name}: packing 'segments' needs to know documents, which this token file "
                "does not; allowed: packing 'stream', or a token file written with its documents"
            )
        if len(store) < sequence_length + 1:
            raise ValueError(
                f"{store.name}: the corpus has {len(store)} tokens, fewer than one row of "
                f"sequence_length + 1 = {sequence_length + 1}; give more text or a shorter "
                "sequence_length"
            )
        self.store = store
        self.name = store.name
        self.vocab_size = store.vocab_size
        self.checksum = store.checksum
        self.lost_share = store.lost_share
        self.endless = False
        self.sequence_length = sequence_length
        self.segments = segments
        self.complete = complete
        targets = len(store) - 1
        windows = -(-targets // sequence_length) if complete else targets // sequence_length
        if not complete and windows < batch_size:
            raise ValueError(
                f"{store.name}: batch_size is {batch_size}, but the corpus has {windows} rows of "
                f"sequence_length {sequence_length}; allowed: a batch_size of at most {windows}, "
                "a shorter sequence_length, or more text"
            )
        self.num_windows = windows
        self.num_rows = -(-windows // batch_size) * batch_size if complete else windows

    def __len__(self) -> int:
        return self.num_rows

    def __repr__(self) -> str:
        return f"WindowSource({self.name}, rows={self.num_rows}, T={self.sequence_length})"

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        length = self.sequence_length
        first = index * length
        last = min(first + length + 1, len(self.store))
        count = last - first if index < self.num_windows else 0
        piece = self.store.checked_piece(first, first + count, documents=self.segments)
        row = {"tokens": np.zeros(length + 1, np.int32)}
        row["tokens"][:count] = piece.tokens
        if self.segments:
            row["segment_ids"] = np.zeros(length + 1, np.int32)
            row["segment_ids"][:count] = document_numbers(piece)
        if piece.byte_counts is not None:
            row["target_bytes"] = np.zeros(length, np.int32)
            row["target_bytes"][: max(count, 1) - 1] = piece.byte_counts[1:]
        if self.complete:
            mask: Float[np.ndarray, " T"] = (np.arange(1, length + 1) < count).astype(np.float32)
            row["loss_mask"] = mask
        return row

    def token_counts(self) -> np.ndarray:
        return self.store.token_counts()
