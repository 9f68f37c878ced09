"""Rows of T + 1 tokens cut from one long stream of tokens, each computed from its index alone."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from jaxtyping import Float

CHUNK = 1 << 24  # tokens read at once when a whole store is scanned


class Starts(Protocol):
    """Where documents start: an array, or something that looks them up one at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> int: ...


class TokenStore(ABC):
    """Documents joined into one stream; every document ends with its end-of-document token.

    Attributes:
      name: where the tokens came from, for error messages.
      vocab_size: every token must be smaller.
      checksum: identifies tokens and documents.
      knows_documents: whether it is known where documents start.
    """

    name: str
    vocab_size: int
    checksum: str
    knows_documents: bool

    @abstractmethod
    def __len__(self) -> int:
        """Tokens in the stream."""

    @abstractmethod
    def piece(self, first: int, last: int, documents: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Tokens [first, last), unsigned and unchecked; and, if asked for, where in the piece
        documents start, ascending int64, from 1 on (what is at 0 needs no start)."""

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

    def read(self, first: int, last: int) -> np.ndarray:
        """Tokens [first, last) as int32, checked against vocab_size."""
        tokens, _ = self.piece(first, last, documents=False)
        self.check_ids(tokens, first)
        return tokens.astype(np.int32)

    def read_packed(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [first, last), and the document of each, counting from 1 at `first`: int32."""
        tokens, starts = self.piece(first, last, documents=True)
        assert starts is not None
        self.check_ids(tokens, first)
        segments = 1 + np.searchsorted(starts, np.arange(last - first), side="right")
        return tokens.astype(np.int32), segments.astype(np.int32)

    def token_counts(self) -> np.ndarray:
        """How often each token occurs, int64 [vocab_size]; one scan of the store."""
        counts = np.zeros(self.vocab_size, np.int64)
        for first in range(0, len(self), CHUNK):
            tokens = self.read(first, min(first + CHUNK, len(self)))
            counts += np.bincount(tokens, minlength=self.vocab_size)
        return counts


@dataclass(frozen=True)
class ArrayStore(TokenStore):
    """A store whose tokens are one array.

    Attributes:
      name, vocab_size, checksum: see TokenStore.
      tokens: unsigned integers [N], in memory or memory-mapped.
      starts: index of each document's first token, ascending, int64 [documents], first 0;
        None where a token file does not know its documents.
    """

    name: str
    tokens: np.ndarray
    starts: np.ndarray | None
    vocab_size: int
    checksum: str

    @property
    def knows_documents(self) -> bool:
        return self.starts is not None

    def __len__(self) -> int:
        return len(self.tokens)

    def piece(self, first: int, last: int, documents: bool) -> tuple[np.ndarray, np.ndarray | None]:
        tokens = np.asarray(self.tokens[first:last])
        if not documents or self.starts is None:
            return tokens, None
        low, high = np.searchsorted(self.starts, (first + 1, last))
        return tokens, self.starts[low:high] - first

    def split_point(self, fraction: float) -> int:
        return split_point(self.starts, len(self), fraction)

    def cut(self, first: int, last: int) -> ArrayStore:
        starts = None if self.starts is None else cut_starts(self.starts, first, last)
        checksum = cut_checksum(self.checksum, first, last)
        return replace(self, tokens=self.tokens[first:last], starts=starts, checksum=checksum)


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
    name: str, documents: list[np.ndarray], eos_id: int, vocab_size: int
) -> ArrayStore:
    """A store of tokenised documents, each followed by eos_id; empty documents are left out."""
    documents = [document for document in documents if len(document)]
    if not documents:
        raise ValueError(f"{name}: the corpus is empty; at least one document with text is needed")
    lengths = np.array([len(document) + 1 for document in documents], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    tokens = np.full(int(lengths.sum()), eos_id, token_dtype(vocab_size))
    for start, document in zip(starts, documents, strict=True):
        tokens[start : start + len(document)] = document
    return ArrayStore(name, tokens, starts, vocab_size, checksum_of(tokens, starts))


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
    padding); loss_mask float32 [T] with `complete`.
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
        row = {"tokens": np.zeros(length + 1, np.int32)}
        if self.segments:
            row["segment_ids"] = np.zeros(length + 1, np.int32)
            piece = self.store.read_packed(first, first + count)
            row["tokens"][:count], row["segment_ids"][:count] = piece
        else:
            row["tokens"][:count] = self.store.read(first, first + count)
        if self.complete:
            mask: Float[np.ndarray, "T"] = (np.arange(1, length + 1) < count).astype(np.float32)
            row["loss_mask"] = mask
        return row

    def token_counts(self) -> np.ndarray:
        return self.store.token_counts()
