"""Multi-query associative recall (MQAR): pairs of keys and values, then keys that ask.

    3 90  17 71   0   0   3   0   0   0   17   0      pairs, then queries among fillers
                         90               71          what is scored; everything else is not

The distribution is that of github.com/HazyResearch/zoology (`zoology/data/multiquery_ar.py`;
Arora, Eyuboglu et al., arXiv:2312.04927), which draws a whole data set with numpy's global
generator; here example i is drawn from (seed, split, length, pairs, i) alone.
"""

from __future__ import annotations

import hashlib
import itertools
import sys

import numpy as np

from multiscreen_jax.data.config import MqarConfig

# (length, pairs, examples). The figure trains and tests each row alone; the suite trains on all.
ORIGINAL_TRAIN = ((64, 4, 100_000), (128, 8, 100_000), (256, 16, 100_000), (512, 64, 100_000))
ORIGINAL_VALID = tuple((length, pairs, 3_000) for length, pairs, _ in ORIGINAL_TRAIN)
MIXED_TRAIN = (
    (64, 4, 100_000),
    (128, 8, 20_000),
    (256, 16, 20_000),
    (256, 32, 20_000),
    (256, 64, 20_000),
)
MIXED_VALID = (
    (64, 4, 1_000),
    (64, 8, 1_000),
    (64, 16, 1_000),
    (128, 32, 1_000),
    (256, 64, 1_000),
    (512, 128, 1_000),
    (1024, 256, 1_000),
)
COUNTED_ROWS = 256  # rows of the endless stream that stand for its token frequencies


def example(
    rng: np.random.Generator,
    length: int,
    pairs: int,
    vocab_size: int = 8192,
    power: float = 0.01,
    num_passes: int = 1,
    random_non_queries: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """One example: (inputs int32 [n], labels int32 [n]), label 0 where nothing is asked.

    D different keys and D different values are drawn uniformly. The context is k1 v1 ... kD vD,
    num_passes times. Of the m = (n - context) / 2 places after it (every second position, the
    first right after the context) D are drawn one after the other without replacement, place i
    (from 0) with probability proportional to (i + 1)^(power - 1), and key j asks at the j-th;
    its label is value j. All other positions are 0, or uniform over the vocabulary: such a
    token may be a key or a value by chance.

    The answer itself is not shown after a query: labels are not the inputs shifted by one.
    Arguments are those of `MqarConfig`, which checks them.
    """
    first_value = vocab_size // 2
    keys = 1 + rng.choice(first_value - 1, pairs, replace=False)
    values = first_value + rng.choice(vocab_size - first_value, pairs, replace=False)
    context = 2 * pairs * num_passes
    places = (length - context) // 2
    weights = np.arange(1.0, places + 1) ** (power - 1)
    chosen = rng.choice(places, pairs, replace=False, p=weights / weights.sum())
    inputs = np.zeros(length, np.int32)
    if random_non_queries:
        inputs[:] = rng.integers(vocab_size, size=length)
    inputs[:context] = np.tile(np.stack([keys, values], axis=1).ravel(), num_passes)
    queries = context + 2 * chosen
    inputs[queries] = keys
    labels = np.zeros(length, np.int32)
    labels[queries] = values
    return inputs, labels


class MqarSource:
    """Random access to rows: examples of the parts of a split, each part in whole batches.

    Row r belongs to batch r // batch_size, and a batch to one part, so that a batch weighs its
    scored positions alike; rows of padding complete the last batch of a part. The training rows
    start over after the last part: the set is finite, as the original's is, and in its order.

    Rows are dicts: tokens int32 [T+1], 0 after the example's n; targets int32 [T] and loss_mask
    float32 [T]: the labels, and 1 where there is one. T is sequence_length in training and the
    longest part's n in validation.
    """

    def __init__(
        self,
        config: MqarConfig,
        sequence_length: int,
        seed: int,
        split: str,
        batch_size: int = 1,
    ):
        self.config = config
        self.name = "mqar"
        self.lost_share = 0.0
        self.vocab_size = config.vocab_size
        self.seed = seed
        self.endless = split == "train"
        self.parts = config.train if self.endless else config.valid
        longest = max(length for length, _, _ in self.parts)
        self.sequence_length = sequence_length if self.endless else longest
        rows = [-(-examples // batch_size) * batch_size for _, _, examples in self.parts]
        self._ends = np.array(list(itertools.accumulate(rows)))
        self.checksum = f"mqar:{hashlib.sha256(repr((config, split)).encode()).hexdigest()}"

    def __len__(self) -> int:
        return sys.maxsize if self.endless else int(self._ends[-1])

    def __repr__(self) -> str:
        return f"MqarSource({self.config}, T={self.sequence_length})"

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index %= int(self._ends[-1])
        part = int(np.searchsorted(self._ends, index, side="right"))
        number = index - (int(self._ends[part - 1]) if part else 0)
        length, pairs, examples = self.parts[part]
        tokens = np.zeros(self.sequence_length + 1, np.int32)
        targets = np.zeros(self.sequence_length, np.int32)
        if number < examples:
            settings = self.config
            tokens[:length], targets[:length] = example(
                np.random.default_rng((self.seed, int(self.endless), length, pairs, number)),
                length,
                pairs,
                settings.vocab_size,
                settings.power,
                settings.num_passes,
                settings.random_non_queries,
            )
        # Values are above 0, so that a target of 0 is no answer.
        mask = (targets > 0).astype(np.float32)
        return {"tokens": tokens, "targets": targets, "loss_mask": mask}

    def token_counts(self) -> np.ndarray:
        """Token frequencies of the split, int64 [vocab_size]; of its first rows if endless."""
        rows = COUNTED_ROWS if self.endless else len(self)
        tokens = np.concatenate([self[index]["tokens"] for index in range(rows)])
        return np.bincount(tokens, minlength=self.vocab_size).astype(np.int64)
