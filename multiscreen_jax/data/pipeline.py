"""From a DataConfig to batches that are pure functions of their number."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from multiscreen_jax.data.config import SPLITS, DataConfig, near_matches
from multiscreen_jax.data.loading import open_store
from multiscreen_jax.data.packing import WindowSource
from multiscreen_jax.data.tokenizers import Tokenizer

Batch = dict[str, np.ndarray]


class Pipeline:
    """Batches of one split, for one process. Made by `open_pipeline`.

    Attributes:
      config, split: what it was opened with.
      tokenizer: with encode(str) -> int32 [n], decode(tokens) -> str, vocab_size, eos_id.
      vocab_size: every token is smaller.
      num_batches: global batches that show every row once; None for the endless training
        stream of "abcdigits".
      rows_per_batch: rows of this process in every batch: batch_size / process_count.
      fingerprint: identifies the data, its order and its shape, whatever the processes.
    """

    def __init__(
        self,
        config: DataConfig,
        split: str,
        rows: WindowSource,
        tokenizer: Tokenizer,
        process_index: int,
        process_count: int,
    ):
        self.config = config
        self.split = split
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.rows_per_batch = config.batch_size // process_count
        self._rows = rows
        dataset = grain.MapDataset.source(rows)
        if split == "train":
            # Grain shuffles epoch e by seed + e; hashed seeds keep neighbouring seeds apart.
            seed = int(np.random.SeedSequence(config.seed).generate_state(1)[0])
            dataset = dataset.shuffle(seed).repeat()
        self.num_batches = math.ceil(len(rows) / config.batch_size)
        # Process p of n takes local batches p, p + n, ...: its slice of every global batch.
        local = dataset.batch(self.rows_per_batch)
        self._batches = local[process_index::process_count]

    @property
    def fingerprint(self) -> str:
        config = self.config
        facts = (
            self._rows.store.checksum,
            self.tokenizer.fingerprint,
            self.split,
            config.sequence_length,
            config.batch_size,
            config.packing,
            config.seed,
        )
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]

    def _check_number(self, number: int) -> None:
        finite = self.split == "valid"
        if number < 0 or (finite and number >= self.num_batches):
            allowed = f"0 to {self.num_batches - 1}" if finite else "0 and above"
            raise IndexError(f"batch {number} of the {self.split} split; allowed: {allowed}")

    def batch(self, index: int) -> Batch:
        """Batch number index: tokens int32 [B, T+1] and, by config, segment_ids and loss_mask.

        A pure function of config, split and index: nothing read before matters. B is
        rows_per_batch. The train split repeats in a new order every epoch; the valid split is
        read once, in order.
        """
        self._check_number(index)
        return self._batches[index]

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """batch(start), batch(start + 1), ..., prepared ahead in a background thread."""
        if start < 0:
            self._check_number(start)
        # One thread: batches are cheap, and more would fight the training step for the GIL.
        ahead = self.config.prefetch
        options = grain.ReadOptions(num_threads=min(1, ahead), prefetch_buffer_size=ahead)
        iterator = iter(self._batches[start:].to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()

    def target_bytes(self, batch: Batch) -> int:
        """Bytes of text behind the targets of a batch whose loss_mask is not 0.

        The divisor of bits per byte: nats / ln 2 / bytes. End-of-document tokens are no text:
        0 bytes. Exact for byte, character and byte-level tokenizers; with others the decoded
        text of each row's scored targets is measured.
        """
        targets = batch["tokens"][:, 1:]
        mask = batch.get("loss_mask")
        scored = np.ones(targets.shape, bool) if mask is None else np.asarray(mask) > 0
        return sum(self._count_bytes(row[keep]) for row, keep in zip(targets, scored, strict=True))

    def _count_bytes(self, tokens: np.ndarray) -> int:
        lengths = self.tokenizer.byte_lengths
        if lengths is not None:
            return int(lengths[tokens].sum())
        return len(self.tokenizer.decode(tokens).encode("utf-8"))

    def unigram_bits_per_byte(self) -> float:
        """Entropy of the split's token frequencies, in bits per byte of its text.

        What a model that knows only how often each token occurs would reach. One scan of the
        tokens.
        """
        store = self._rows.store
        counts = store.counts
        if self.tokenizer.byte_lengths is not None:
            text_bytes = int(counts @ self.tokenizer.byte_lengths)
        else:
            text_bytes = self._count_bytes(store.read(0, len(store)))
        return entropy_bits(counts) / max(1, text_bytes)


def entropy_bits(counts: np.ndarray | Sequence[int]) -> float:
    """Bits to code a text of these token counts by their own frequencies: sum of -n log2(n/N)."""
    seen = np.asarray(counts, np.float64)
    seen = seen[seen > 0]
    return float(-(seen * np.log2(seen / seen.sum())).sum())


def open_pipeline(
    config: DataConfig, split: str = "train", process_index: int = 0, process_count: int = 1
) -> Pipeline:
    """Opens the data of a config: reads and tokenises documents, or maps a token file.

    Args:
      config: the data.
      split: "train" (shuffled, endless) or "valid" (every target once, in order).
      process_index, process_count: this process and how many there are; it gets its rows of
        every global batch, which is the same whatever the count.

    Raises:
      ValueError, FileNotFoundError: one line that says what is wrong with the data, and where.
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
    store, tokenizer = open_store(config, split)
    rows = WindowSource(
        store,
        config.sequence_length,
        segments=config.packing == "segments",
        complete=split == "valid",
        batch_size=config.batch_size,
    )
    return Pipeline(config, split, rows, tokenizer, process_index, process_count)
