"""ABCDigits: lines `X=dddddd`, the last of which asks for a letter's number.

`make_by_lines` and `make_by_tokens` are the benchmark, equal to its author's generator (Ken
Nakanishi, github.com/ken-nakanishi/abcdigits) bit for bit: they call Python's `random`, whose
Mersenne Twister, `sample`, `shuffle` and `choices` have been stable since Python 3.11.
`AbcDigitsSource` is a training stream of the same distribution with random access.
"""

from __future__ import annotations

import hashlib
import random
import string
import sys
from collections.abc import Callable

import numpy as np

from multiscreen_jax.data.config import AbcDigitsConfig
from multiscreen_jax.data.tokenizers import Tokenizer

LETTERS = string.ascii_uppercase
ALPHABET = string.digits + "=\n" + LETTERS  # 38 symbols
COUNTED_ROWS = 256  # rows of the endless stream that stand for its token frequencies


def make_by_lines(n_lines: int, depth: float, n_digits: int = 6, n_trials: int = 1) -> list[str]:
    """Benchmark texts of n_lines lines, the two of the target included.

    Args:
      n_lines: lines of each text, >= 50.
      depth: where the target's first line stands, as a share of the other lines, in [0, 1].
      n_digits: digits of every number, 2 to 15.
      n_trials: how many texts; fewer trials are a prefix of more.

    Returns:
      Texts that end in the answer, without a final newline: see `split_answer`. Equal
      arguments always give equal texts.
    """
    if n_lines < 50:
        raise ValueError(f"n_lines is {n_lines}; allowed: an integer >= 50")
    _check_arguments(depth, n_digits, n_trials)
    rng = random.Random(123)
    texts = []
    for _ in range(n_trials):
        lines, weights, target = _draw_letters(rng, n_digits)
        filler = [line for line in range(26) if line != target]
        filler += rng.choices(range(26), weights, k=n_lines - 27)
        texts.append(_assemble(rng, lines, filler, target, depth))
    return texts


def make_by_tokens(
    n_tokens: int,
    depth: float,
    count_tokens: Callable[[str], int],
    n_digits: int = 6,
    n_trials: int = 1,
) -> list[str]:
    """Benchmark texts of about n_tokens tokens: the first length that is not below.

    Args:
      n_tokens: wanted length, more than twice the shortest text (one line per letter and the
        question).
      depth, n_digits, n_trials: as for `make_by_lines`.
      count_tokens: how many tokens a line, newline included, is. Lines are counted alone.

    Returns:
      Texts as `make_by_lines` gives them.
    """
    _check_arguments(depth, n_digits, n_trials)
    rng = random.Random(123)
    texts = []
    for _ in range(n_trials):
        lines, weights, target = _draw_letters(rng, n_digits)
        lengths = [count_tokens(line + "\n") for line in lines]
        total = sum(lengths) + lengths[target]
        if n_tokens <= 2 * total:
            raise ValueError(f"n_tokens is {n_tokens}; allowed: more than {2 * total}")
        filler = [line for line in range(26) if line != target]
        while total < n_tokens:
            (line,) = rng.choices(range(26), weights)
            filler.append(line)
            total += lengths[line]
        texts.append(_assemble(rng, lines, filler, target, depth))
    return texts


def split_answer(text: str, n_digits: int = 6) -> tuple[str, str]:
    """(prompt ending in `X=`, answer) of a benchmark text."""
    return text[:-n_digits], text[-n_digits:]


def _check_arguments(depth: float, n_digits: int, n_trials: int) -> None:
    if not 0 <= depth <= 1:
        raise ValueError(f"depth is {depth}; allowed: a number from 0 to 1")
    if not 2 <= n_digits <= 15:  # 26 different numbers need two digits
        raise ValueError(f"n_digits is {n_digits}; allowed: an integer from 2 to 15")
    if n_trials < 1:
        raise ValueError(f"n_trials is {n_trials}; allowed: an integer >= 1")


def _draw_letters(rng: random.Random, n_digits: int) -> tuple[list[str], list[int], int]:
    # The order of these two draws is part of the benchmark.
    values = rng.sample(range(10 ** (n_digits - 1), 10**n_digits), 26)
    weights = [0] + [2**power for power in range(25)]
    rng.shuffle(weights)
    lines = [f"{letter}={value}" for letter, value in zip(LETTERS, values, strict=True)]
    return lines, weights, weights.index(0)


def _assemble(
    rng: random.Random, lines: list[str], filler: list[int], target: int, depth: float
) -> str:
    rng.shuffle(filler)
    filler.insert(int(len(filler) * depth), target)
    return "\n".join(lines[line] for line in [*filler, target])


class AbcDigitsSource:
    """Random access to training rows; row i is drawn from (seed, split, i) alone.

    A row is a list of lines cut to T + 1 tokens, one token a character: as many whole lines
    as fit, the last without its newline if it just fits, otherwise the beginning of one more.
    In `halving_share` of the rows the last whole line asks for a letter shown once before, at
    a uniformly drawn depth, among fillers with the benchmark's halving weights; in the others
    the letter of every line is drawn uniformly.

    Rows are dicts: tokens int32 [T+1]; loss_mask float32 [T]: 1 for digits of a letter that
    had a line before, other_weight elsewhere, 0 in the padding rows that complete the last
    validation batch.
    """

    def __init__(
        self,
        config: AbcDigitsConfig,
        tokenizer: Tokenizer,
        sequence_length: int,
        seed: int,
        split: str,
        batch_size: int = 1,
    ):
        self.config = config
        self.name = "abcdigits"
        self.lost_share = 0.0
        self.sequence_length = sequence_length
        self.seed = seed
        self.endless = split == "train"
        self.num_windows = sys.maxsize if self.endless else config.valid_sequences
        self._num_rows = self.num_windows
        if not self.endless:
            self._num_rows = -(-self.num_windows // batch_size) * batch_size
        self.vocab_size = tokenizer.vocab_size
        digits, letters = tokenizer.encode(string.digits), tokenizer.encode(LETTERS)
        self._digits, self._letters = digits, letters
        self._equals, self._newline = (int(i) for i in tokenizer.encode("=\n"))
        self.line_length = config.num_digits + 3
        self.num_lines = (sequence_length + 2) // self.line_length
        facts = repr((config, split))
        self.checksum = f"abcdigits:{hashlib.sha256(facts.encode()).hexdigest()}"

    def __len__(self) -> int:
        return self._num_rows

    def __repr__(self) -> str:
        return f"AbcDigitsSource({self.config}, T={self.sequence_length})"

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        length = self.sequence_length
        if index >= self.num_windows:
            padding = np.zeros(length, np.float32)
            return {"tokens": np.zeros(length + 1, np.int32), "loss_mask": padding}
        rng = np.random.default_rng((self.seed, int(self.endless), index))
        numbers, order = self._draw(rng)
        tokens = np.empty((len(order), self.line_length), np.int32)
        tokens[:, 0] = self._letters[numbers[0][order]]
        tokens[:, 1] = self._equals
        tokens[:, 2:-1] = self._digits[numbers[1][order]]
        tokens[:, -1] = self._newline
        known = np.ones(len(order), bool)
        known[np.unique(order, return_index=True)[1]] = False
        weights = np.full(tokens.shape, self.config.other_weight, np.float32)
        weights[known, 2:-1] = 1.0
        return {
            "tokens": tokens.reshape(-1)[: length + 1],
            "loss_mask": weights.reshape(-1)[1 : length + 1],
        }

    def _draw(self, rng: np.random.Generator):
        """((letters [k], their digits [k, n]), which of the k each line shows)."""
        config, lines = self.config, self.num_lines
        halving = rng.random() < config.halving_share
        count = int(rng.integers(config.min_letters, config.max_letters + 1))
        if halving:
            count = min(count, lines - 1)  # every letter once, and the question
        letters = rng.permutation(26)[:count]
        low = 10 ** (config.num_digits - 1)
        values = low + rng.choice(9 * low, count, replace=False)
        digits = values[:, None] // 10 ** np.arange(config.num_digits)[::-1] % 10
        if halving:
            weights = np.concatenate([[0.0], 2.0 ** np.arange(count - 1)])
            draws = rng.choice(count, lines - count, p=weights / weights.sum())
            # One draw more than the fillers lack: the line that may be cut.
            filler = rng.permutation(np.concatenate([np.arange(1, count), draws[1:]]))
            target_line = int(len(filler) * rng.random())
            order = np.concatenate([np.insert(filler, target_line, 0), [0], draws[:1]])
        else:
            order = rng.integers(count, size=lines + 1)
        return (letters, digits), order

    def token_counts(self) -> np.ndarray:
        """Token frequencies of the split, int64 [vocab_size]; of its first rows if endless."""
        rows = COUNTED_ROWS if self.endless else self.num_windows
        tokens = np.concatenate([self[index]["tokens"] for index in range(rows)])
        return np.bincount(tokens, minlength=self.vocab_size).astype(np.int64)
