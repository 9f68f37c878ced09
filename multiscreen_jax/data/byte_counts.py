"""Bytes of a text behind each of its tokens, from where the tokens lie in the text."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


class TextBytes:
    """Where the characters of a text lie in its UTF-8.

    Attributes:
      total: bytes of the text.
    """

    def __init__(self, text: str):
        self._points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        sizes = 1 + sum(
            (self._points >= least).astype(np.int64) for least in (0x80, 0x800, 1 << 16)
        )
        self._ends = np.concatenate([[0], np.cumsum(sizes)])
        self.total = int(self._ends[-1])

    def before(self, characters: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Bytes before each of these characters, counted from 0."""
        return self._ends[characters]


def count_bytes(
    text: TextBytes, spans: Int[np.ndarray, "n 2"], weights: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Bytes behind each token; they sum to all bytes of the text.

    Args:
      text: the text.
      spans: first character and end of each token; they may overlap, and leave gaps.
      weights: bytes that each token's own piece has, at least 1.

    Tokens that share characters share the bytes of all they cover, in proportion to their weights:
    the four byte tokens of an emoji have one byte each. Characters that no token covers, such as
    white space that a normalizer drops, belong to the token after them, at the end to the last.
    """
    if not len(spans):
        return np.zeros(0, np.int64)
    reached = np.maximum.accumulate(spans[:, 1])
    firsts = np.flatnonzero(spans[1:, 0] >= reached[:-1]) + 1  # tokens that share nothing before
    firsts = np.concatenate([[0], firsts])
    lasts = np.concatenate([firsts[1:], [len(spans)]]) - 1
    ends = text.before(reached[lasts])
    ends[-1] = text.total
    begins = np.concatenate([[0], ends[:-1]])
    group = np.repeat(np.arange(len(firsts)), lasts - firsts + 1)
    weighed = np.cumsum(weights)
    before = (weighed - weights)[firsts]
    share = weighed - before[group]  # of a group's weight, up to and with each token
    whole = (weighed[lasts] - before)[group]
    places = begins[group] + (ends - begins)[group] * share // whole
    return np.diff(places, prepend=0)


def narrow(counts: Int[np.ndarray, " n"]) -> np.ndarray:
    """The same counts in the smallest unsigned integers that hold them."""
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))
