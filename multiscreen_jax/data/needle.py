"""Needles in a haystack: sentences with a magic number, hidden in the text of real books.

The form is that of RULER's single-key and multi-key tasks (Hsieh et al., arXiv:2404.06654): one
sentence is asked for at the end of the prompt; in the multi-key task others of the same form,
with other keys and numbers, lie anywhere in the text.

>>> haystack = Haystack.read("books.jsonl.xz")
>>> question = make_question(haystack, 4096, 0.5, len, keys=4)
>>> question.prompt[-60:], question.answer
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from multiscreen_jax.data.sources import read_documents

ADJECTIVES = (
    "amber", "brave", "calm", "clever", "copper", "distant", "eager", "early", "fabled",
    "gentle", "golden", "hidden", "honest", "humble", "jolly", "lively", "lonely", "mellow",
    "modest", "narrow", "noble", "patient", "polished", "proud", "quiet", "rapid", "rustic",
    "silver", "solemn", "steady", "tidy", "velvet",
)  # fmt: skip
NOUNS = (
    "anchor", "arrow", "badger", "basket", "beacon", "bridge", "candle", "canyon", "castle",
    "cedar", "compass", "falcon", "feather", "garden", "harbor", "island", "kettle",
    "ladder", "lantern", "meadow", "mirror", "orchard", "pebble", "pepper", "ribbon",
    "saddle", "spindle", "thimble", "tunnel", "violin", "walnut", "willow",
)  # fmt: skip

INTRODUCTION = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize them. "
    "I will quiz you about the numbers afterwards.\n"
)
NEEDLE = "One of the special magic numbers for {key} is: {number}. "
QUESTION = (
    "\nWhat is the special magic number for {key} mentioned in the provided text? "
    "The special magic number for {key} mentioned in the provided text is:"
)
# Ends of sentences, with the space after them.
_SENTENCE_END = re.compile(r"[.!?][\"')\]’”_]*\s+")
_WORD_END = re.compile(r"\S\s")
_SHORTFALL = 0.01  # share of the wanted length by which a prompt may be shorter


@dataclass(frozen=True)
class Question:
    """A prompt, and the answer that continues it (a space and digits)."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Haystack:
    """Documents joined into one ring of text.

    Attributes:
      name: where they came from, for error messages.
      text: the documents, separated by empty lines.
    """

    name: str
    text: str

    @classmethod
    def read(cls, source: str, split: str = "valid", text_field: str = "text") -> Haystack:
        """All documents of a source: files, folder or glob as `DataConfig.source`, or "sotu".

        Raises:
          ValueError, FileNotFoundError: one line on what is wrong, and where.
        """
        documents = read_documents(source, split, text_field)
        text = "\n\n".join(document.text.strip() for document in documents)
        if len(text.split(None, 100)) <= 100:
            raise ValueError(f"{source}: fewer than 100 words; a haystack needs more text")
        return cls(source, text)

    def cut(self, start: int, characters: int) -> str:
        """So many characters, cut to whole words, from the first sentence after `start`."""
        found = _SENTENCE_END.search(self.text, start)
        first = found.end() if found and found.end() < len(self.text) else 0
        piece = self.text[first : first + characters + 1]
        while len(piece) <= characters:  # from the beginning again, as the text is a ring
            piece += "\n\n" + self.text[: characters + 1 - len(piece)]
        cut = max(piece.rfind(" "), piece.rfind("\n"), 0)
        return piece[:cut].rstrip()


def make_question(
    haystack: Haystack,
    length: int,
    depth: float,
    count_tokens: Callable[[str], int],
    *,
    keys: int = 1,
    digits: int = 7,
    seed: int = 0,
    index: int = 0,
) -> Question:
    """Question number `index`: a function of (seed, index) and the other arguments alone.

    Args:
      haystack: where the text comes from; where it begins is drawn.
      length: prompt and answer have at most so many tokens, and at most 1 % (or one word) fewer.
      depth: where the asked-for needle lies, as a share of the text, in [0, 1]: at the nearest
        end of a sentence. Equal questions at other depths and lengths have the same keys,
        numbers and beginning of the text.
      count_tokens: how many tokens a text is.
      keys: needles in the text, each with a key of its own, 1 to 1024; only one is asked for,
        the others lie at drawn depths.
      digits: digits of every number, 1 to 15.

    Raises:
      ValueError: an argument out of range, a length too short for needles and question.
    """
    _check(length, depth, keys, digits)
    rng = np.random.default_rng((seed, index))
    drawn = rng.choice(len(ADJECTIVES) * len(NOUNS), keys, replace=False)
    names = [f"{ADJECTIVES[i // len(NOUNS)]}-{NOUNS[i % len(NOUNS)]}" for i in drawn]
    numbers = rng.integers(10 ** (digits - 1), 10**digits, size=keys)
    start = int(rng.integers(len(haystack.text)))
    depths = [depth, *rng.random(keys - 1)]
    needles = [
        NEEDLE.format(key=name, number=number) for name, number in zip(names, numbers, strict=True)
    ]
    question, answer = QUESTION.format(key=names[0]), f" {numbers[0]}"

    def prompt(characters: int) -> str:
        text = haystack.cut(start, characters) if characters else ""
        return INTRODUCTION + hide(text, needles, depths) + question

    def count(characters: int) -> int:
        return count_tokens(prompt(characters) + answer)

    if count(0) > length:
        raise ValueError(
            f"length is {length}; allowed: at least {count(0)}, the tokens of needles and question"
        )
    return Question(prompt(_fit(count, length)), answer)


def hide(text: str, needles: list[str], depths: list[float]) -> str:
    """A text with each needle at the end of the sentence nearest to its depth.

    Text without ends of sentences has them at ends of words; the beginning and the end of the
    text are ends too. Needles at the same place keep their order.
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not ends:
        ends = [match.end() for match in _WORD_END.finditer(text)]
    if text:
        text += " "
    ends = [0, *ends, len(text)]
    places = [_nearest(ends, depth * len(text)) for depth in depths]
    parts, last = [], 0
    for place, needle in sorted(zip(places, needles, strict=True), key=lambda pair: pair[0]):
        parts += [text[last:place], needle]
        last = place
    return "".join([*parts, text[last:]]).rstrip()


def _nearest(ends: list[int], position: float) -> int:
    after = bisect.bisect_left(ends, position)
    close = ends[max(0, after - 1) : after + 1]
    return min(close, key=lambda end: abs(end - position))


def _fit(count: Callable[[int], int], length: int) -> int:
    """The most characters whose count is at most `length`, to within the allowed shortfall.

    Counting is what costs, so positions are guessed from the tokens a character had so far.
    """
    low, low_count = 0, count(0)
    high = high_count = None
    while length - low_count > _SHORTFALL * length:
        if high is None or high_count is None:
            guess = max(2 * low, 4 * (length - low_count), 16)
        elif high - low <= 1:
            break
        else:
            share = (length - 0.5 * _SHORTFALL * length - low_count) / (high_count - low_count)
            # The interval loses at least an eighth, also where counting does not follow length.
            least = max(1, (high - low) // 8)
            guess = min(max(low + int(share * (high - low)), low + least), high - least)
        guessed = count(guess)
        if guessed <= length:
            low, low_count = guess, guessed
        else:
            high, high_count = guess, guessed
    return low


def _check(length: int, depth: float, keys: int, digits: int) -> None:
    most = len(ADJECTIVES) * len(NOUNS)
    if not 0 <= depth <= 1:
        raise ValueError(f"depth is {depth}; allowed: a number from 0 to 1")
    for name, value, low, high in (("keys", keys, 1, most), ("digits", digits, 1, 15)):
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; allowed: an integer from {low} to {high}")
