"""From a DataConfig to batches that are pure functions of their number."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import grain
import numpy as np
from jaxtyping import Bool

from multiscreen_jax.cleanup import afterwards
from multiscreen_jax.data import synthetic
from multiscreen_jax.data.config import SPLITS, SYNTHETIC, DataConfig, near_matches
from multiscreen_jax.data.loading import open_split
from multiscreen_jax.data.packing import WindowSource
from multiscreen_jax.data.tokenizers import Tokenizer

SMALL_LOSS = 1e-3  # share of a corpus's bytes that a tokenizer may lose without a word
Batch = dict[str, np.ndarray]


def device_arrays(batch: Batch) -> Batch:
    """Arrays of a batch that a model and its loss read: all but `target_bytes`."""
    return {name: array for name, array in batch.items() if name != "target_bytes"}


class Rows(Protocol):
    """Random access to single rows: what a pipeline shuffles, repeats and batches."""

    vocab_size: int
    checksum: str
    endless: bool
    lost_share: float

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...

    def token_counts(self) -> np.ndarray: ...


class Pipeline:
    """Batches of one split, for one process. Made by `open_pipeline`.

    Attributes:
      config, split: what it was opened with.
      tokenizer: with encode(str) -> int32 [n], decode(tokens) -> str, vocab_size, eos_id.
      vocab_size: every token is smaller.
      num_batches: global batches that show every row once; None for the endless training
        streams of synthetic sources.
      rows_per_batch: rows of this process in every batch.
      fingerprint: identifies the data, its order and its shape, whatever the processes.
      lost_share: share of the corpus's bytes that the tokenizer loses as unknown; bits per byte
        do not say how well those are predicted.
    """

    def __init__(
        self,
        config: DataConfig,
        split: str,
        rows: Rows,
        tokenizer: Tokenizer,
        own: Sequence[int],
    ):
        self.config = config
        self.split = split
        self.tokenizer = tokenizer
        self.vocab_size = rows.vocab_size
        self.rows_per_batch = len(own)
        self.num_batches = None if rows.endless else math.ceil(len(rows) / config.batch_size)
        self.fingerprint = fingerprint_of(config, split, rows.checksum, tokenizer)
        self.lost_share = rows.lost_share
        self._rows = rows
        dataset = grain.MapDataset.source(rows)
        if split == "train" and not rows.endless:
            # Grain shuffles epoch e by seed + e; hashed seeds keep neighbouring seeds apart.
            seed = int(np.random.SeedSequence(config.seed).generate_state(1)[0])
            dataset = dataset.shuffle(seed).repeat()
        mine = grain.MapDataset.source(_OwnRows(dataset, config.batch_size, own))
        self._batches = mine.batch(self.rows_per_batch, drop_remainder=True)

    def take(self, own: Sequence[int]) -> Pipeline:
        """The same batches, of each only the rows with these numbers (0 to batch_size - 1)."""
        return Pipeline(self.config, self.split, self._rows, self.tokenizer, own)

    def batch(self, index: int) -> Batch:
        """Batch number index: tokens int32 [B, T+1], by config segment_ids int32 [B, T+1],
        loss_mask float32 [B, T] (valid split and synthetic sources), targets int32 [B, T]
        ("mqar", whose answers are not the next token), and target_bytes int32 [B, T] (tokenizers
        without byte_lengths): the bytes of text behind each target.

        A pure function of config, split and index: nothing read before matters. B is
        rows_per_batch. The train split repeats in a new order every epoch, whatever the index;
        the valid split is read once, in order: IndexError from num_batches on.
        """
        end = self.num_batches if self.split == "valid" else None
        if index < 0 or (end is not None and index >= end):
            allowed = "0 and above" if end is None else f"0 to {end - 1}"
            raise IndexError(f"batch {index} of the {self.split} split; allowed: {allowed}")
        batch = self._batches[index]
        assert batch is not None  # grain may drop rows of filtered sets; ours has none
        return batch

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """batch(start), batch(start + 1), ..., prepared ahead in a background thread."""
        if start < 0:
            raise IndexError(f"batch {start} of the {self.split} split; allowed: 0 and above")
        return self._iterate(start)

    def _iterate(self, start: int) -> Iterator[Batch]:
        ahead = self.config.prefetch
        # One thread: batches are cheap, and more would fight the training step for the GIL.
        options = grain.ReadOptions(num_threads=min(1, ahead), prefetch_buffer_size=ahead)
        iterator = iter(self._batches[start:].to_iter_dataset(options))
        with afterwards(iterator.close):
            yield from iterator

    def target_bytes(self, batch: Batch) -> int:
        """Bytes of text behind the scored targets of a batch: see `row_bytes`."""
        return int(self.row_bytes(batch).sum())

    def row_bytes(self, batch: Batch) -> np.ndarray:
        """Bytes of text behind the scored targets of every row, int32 [B]: see `scored_targets`.

        The divisor of bits per byte: nats / ln 2 / bytes. These are bytes of the source text,
        counted when it was encoded: every byte of a document counts with one of its tokens. Tokens
        that end documents are no text: 0 bytes. So are all tokens of prepared files that nobody
        counted, see `open_pipeline`.
        """
        counts = batch.get("target_bytes")
        if counts is None and self.tokenizer.byte_lengths is not None:
            targets = np.asarray(batch.get("targets", batch["tokens"][:, 1:]))
            counts = self.tokenizer.byte_lengths[targets]
        scored = scored_targets(batch)
        counts = np.zeros_like(scored, int) if counts is None else np.asarray(counts, int)
        return np.where(scored, counts, 0).sum(axis=1).astype(np.int32)

    def loss_note(self) -> str | None:
        """One line on what the tokenizer loses of the text, where that is more than a little."""
        if self.lost_share <= SMALL_LOSS:
            return None
        return (
            f"warning: the tokenizer {self.tokenizer.name} loses {self.lost_share:.2%} of the "
            f"{self.split} text's bytes: they are unknown to it"
        )

    def unigram_bits_per_byte(self) -> float:
        """Entropy of the split's token frequencies, in bits per byte of its text.

        What a model that knows only how often each token occurs would reach; NaN where tokens
        are no text. One scan of the tokens (endless synthetic streams: of some hundred rows).
        """
        counts = self._rows.token_counts()
        lengths = self.tokenizer.byte_lengths
        text_bytes = self._rows_bytes() if lengths is None else int(counts @ lengths)
        return entropy_bits(counts) / text_bytes if text_bytes else math.nan

    def _rows_bytes(self) -> int:
        rows = (self._rows[index] for index in range(len(self._rows)))
        return sum(self.target_bytes({k: v[None] for k, v in row.items()}) for row in rows)


class _OwnRows:
    """A process's rows of every batch, one batch's after another's, by random access."""

    def __init__(self, dataset: grain.MapDataset, batch_size: int, own: Sequence[int]) -> None:
        self._dataset, self._batch_size, self._own = dataset, batch_size, own

    def __len__(self) -> int:
        return len(self._dataset) // self._batch_size * len(self._own)

    def __getitem__(self, index: int) -> Batch:
        batch, number = divmod(index, len(self._own))
        row = self._dataset[batch * self._batch_size + int(self._own[number])]
        assert row is not None  # grain may drop rows of filtered sets; ours has none
        return row


def scored_targets(batch: Batch) -> Bool[np.ndarray, "B T"]:
    """Which targets count: loss_mask, if given, is not 0 there, and with segment_ids the target
    lies in the same document (not padding) as the token before it."""
    tokens = np.asarray(batch["tokens"])
    scored = np.ones(tokens[:, 1:].shape, bool)
    if batch.get("loss_mask") is not None:
        scored &= np.asarray(batch["loss_mask"]) != 0
    if batch.get("segment_ids") is not None:
        segments = np.asarray(batch["segment_ids"])
        scored &= (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return scored


def entropy_bits(counts: np.ndarray) -> float:
    """Bits to code tokens by their own frequencies: the sum of -n log2(n / N)."""
    seen = np.asarray(counts, np.float64)
    seen = seen[seen > 0]
    return float(-(seen * np.log2(seen / seen.sum())).sum())


def fingerprint_of(config: DataConfig, split: str, checksum: str, tokenizer: Tokenizer) -> str:
    """The `Pipeline.fingerprint` of a split whose tokens have this checksum."""
    facts = (
        checksum,
        tokenizer.fingerprint,
        split,
        config.sequence_length,
        config.batch_size,
        config.packing,
        config.seed,
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def open_pipeline(
    config: DataConfig, split: str = "train", process_index: int = 0, process_count: int = 1
) -> Pipeline:
    """Opens the data of a config: reads and tokenises documents, or finds prepared tokens.

    Args:
      config: the data.
      split: "train" (shuffled, endless) or "valid" (every target once, in order).
      process_index, process_count: this process and how many there are; it gets its share of
        the rows of every batch, which is the same whatever the count. See `Pipeline.take` for
        other shares.

    Raises:
      ValueError, FileNotFoundError: one line that says what is wrong with the data, and where.

    Warns of a valid split in prepared tokens without the bytes behind them, where the tokenizer has
    no byte_lengths: there are no bits per byte then.
    """
    if split not in SPLITS:
        raise ValueError(
            f"split is {split!r}; allowed: {', '.join(SPLITS)}{near_matches(str(split), SPLITS)}"
        )
    if process_count < 1 or config.batch_size % process_count:
        raise ValueError(
            f"process_count is {process_count} with batch_size {config.batch_size}; "
            "allowed: a divisor of batch_size"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is {process_index}; allowed: 0 to {process_count - 1}")
    rows, tokenizer = _open_rows(config, split)
    share = config.batch_size // process_count
    own = range(process_index * share, (process_index + 1) * share)
    return Pipeline(config, split, rows, tokenizer, own)


def _open_rows(config: DataConfig, split: str) -> tuple[Rows, Tokenizer]:
    if config.source in SYNTHETIC:
        tokenizer = synthetic.open_tokenizer(config)
        return synthetic.open_rows(config, tokenizer, split), tokenizer
    store, tokenizer = open_split(config, split)
    windows = WindowSource(
        store,
        config.sequence_length,
        segments=config.packing == "segments",
        complete=split == "valid",
        batch_size=config.batch_size,
    )
    return windows, tokenizer
