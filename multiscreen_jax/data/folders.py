"""Which files of a folder are read: those of one split, without cards and licences.

A folder cloned from a dataset hub has a README.md and data/train-00000-of-00002.parquet,
data/test-00000-of-00001.parquet, or train.jsonl and test.jsonl, or train/ and test/. Names tell a
file's split where they are one of these words, alone or with a number, or begin or end with one:
"val.jsonl", "train_sft-00000-of-00001.parquet", "wiki.test.jsonl", "dev/a.jsonl". Text may have any
name, so a text file's counts only beside a text file for training of the same name otherwise:
"tiny-valid.txt" beside "tiny-train.txt", "test/a.txt" beside "train/b.txt".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from multiscreen_jax.data.kinds import KNOWN, TEXT, extension_of

WORDS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# What the files of a split of ours may be called; the first that there are any of.
READ_AS = {"train": ("train",), "valid": ("valid", "test")}
_SPLITS = {word: split for split, words in WORDS.items() for word in words}
_WORD = "|".join(_SPLITS)
_NUMBERS = r"(?:[-_.]?\d+)?(?:[-_.]of[-_.]\d+)?(?:[-_.][0-9a-f]{16})?"
_LAST = re.compile(rf"(.*[-_.])?({_WORD}){_NUMBERS}", re.IGNORECASE)
_FIRST = re.compile(rf"()({_WORD})[-_.].*", re.IGNORECASE)
_CARDS = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|contributing|citation|code_of_conduct|"
    r"data(set)?_?card|datasheet|requirements|merges|vocab)([-_.].*)?",
    re.IGNORECASE,
)
MOST_NAMED = 4


@dataclass(frozen=True)
class Choice:
    """The files of one split of a source.

    Attributes:
      files: in the order they are read.
      split: the split that their names tell, None where names tell none.
      left_out: what of a folder is not read, in words.
    """

    files: tuple[Path, ...]
    split: str | None = None
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Number of files by kind and folder, their split, and what was left out."""
        places = Counter((str(file.parent), extension_of(file)) for file in self.files)
        parts = [f"{number} {kind} in {where}" for (where, kind), number in sorted(places.items())]
        more = f" and {len(parts) - MOST_NAMED} more places" if len(parts) > MOST_NAMED else ""
        split = f", split {self.split}" if self.split else ""
        left_out = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return f"{', '.join(parts[:MOST_NAMED])}{more}{split}{left_out}"


def joined(choices: Iterable[Choice]) -> Choice:
    """Several choices as one, to be told in one line."""
    choices = list(choices)
    splits = {choice.split for choice in choices}
    return Choice(
        tuple(file for choice in choices for file in choice.files),
        splits.pop() if len(splits) == 1 else None,
        _few(words for choice in choices for words in choice.left_out),
    )


def choose(folder: Path, split: str) -> Choice:
    """The files of a folder, searched through, that our split "train" or "valid" reads.

    Hidden files and folders are no part of it. FileNotFoundError if there is nothing of a known
    kind; ValueError where names tell splits and not which files are meant.
    """
    found, others, cards = _search(folder)
    splits = _by_split(folder, found)
    named = {name: files for name, files in splits.items() if name is not None}
    words = [f"{number} {suffix}" for suffix, number in sorted(others.items())]
    words += [str(card.relative_to(folder)) for card in cards]
    if named.keys() <= {"train"}:
        return Choice(tuple(found), "train" if splits.keys() == {"train"} else None, _few(words))
    if None in splits:
        told, other = (splits[name][0].relative_to(folder) for name in (max(named), None))
        raise ValueError(
            f"folder {folder} has files that names put into a split, such as {told}, and others, "
            f"such as {other}; allowed: a glob of those to read"
        )
    wanted = next((name for name in READ_AS[split] if name in named), None)
    if wanted is None:
        raise ValueError(
            f"folder {folder} has files for {' and '.join(sorted(named))} alone, such as "
            f"{found[0].relative_to(folder)}; allowed: files for {split}, or a glob of what to read"
        )
    rest = [
        f"{len(files)} of split {name}" for name, files in sorted(named.items()) if name != wanted
    ]
    return Choice(tuple(named[wanted]), wanted, _few(rest + words))


def has_split(folder: Path, split: str) -> bool:
    """Whether names in a folder tell files for "train" and for this split."""
    return {"train", split} <= _by_split(folder, _search(folder)[0]).keys()


def known_files(folder: Path) -> list[Path]:
    """Every file of a known kind in a folder, searched through, but hidden ones; sorted."""
    return [file for file in _visible_files(folder) if extension_of(file)]


def _visible_files(folder: Path) -> list[Path]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return [f for f in files if not any(part[0] == "." for part in f.relative_to(folder).parts)]


def _search(folder: Path) -> tuple[list[Path], Counter[str], list[Path]]:
    """Files of known kinds, how many others there are by extension, and cards left out."""
    files = _visible_files(folder)
    known = [file for file in files if extension_of(file)]
    others = Counter(file.suffix or file.name for file in files if not extension_of(file))
    data = [file for file in known if not _is_card(file)]
    if not known or (not data and others):
        kinds = ", ".join(f"{number} {suffix}" for suffix, number in sorted(others.items())[:8])
        instead = f"; it has {kinds}" if kinds else ""
        raise FileNotFoundError(
            f"folder {folder} has no file of a known kind: {', '.join(KNOWN)}{instead}"
        )
    # Among Markdown alone a README is a text like the others.
    if all(file.suffix.lower() == ".md" for file in data):
        return known, others, []
    return data, others, [file for file in known if _is_card(file)]


def _is_card(file: Path) -> bool:
    return extension_of(file) in TEXT and _CARDS.fullmatch(_stem(file)) is not None


def _stem(file: Path) -> str:
    return file.name[: len(file.name) - len(extension_of(file))]


def _by_split(folder: Path, files: list[Path]) -> dict[str | None, list[Path]]:
    told = {file: _told(file, folder) for file in files}
    training = {key for found in told.values() for key, split in found if split == "train"}
    grouped: dict[str | None, list[Path]] = {}
    for file, found in told.items():
        if extension_of(file) in TEXT:
            found = [(key, split) for key, split in found if key in training]
        splits = {split for _, split in found}
        if len(splits) > 1:
            raise ValueError(
                f"{file} is named for {' and for '.join(sorted(splits))}; allowed: one split in a "
                "name, or a glob of the files to read"
            )
        grouped.setdefault(splits.pop() if splits else None, []).append(file)
    return grouped


def _told(file: Path, folder: Path) -> list[tuple[object, str]]:
    """(name without the word, split) of every part of a path that has one of the words."""
    relative = file.relative_to(folder)
    found: list[tuple[object, str]] = []
    for place, part in enumerate(relative.parts[:-1]):
        if match := _LAST.fullmatch(part):
            found.append(((relative.parts[:place], match[1]), _SPLITS[match[2].lower()]))
    # A Markdown page may be about training.
    patterns = {".md": (), ".txt": (_LAST,)}.get(extension_of(file), (_LAST, _FIRST))
    for match in filter(None, (pattern.fullmatch(_stem(file)) for pattern in patterns)):
        found.append(((relative.parent, match[1], "file"), _SPLITS[match[2].lower()]))
    return found


def _few(words: Iterable[str]) -> tuple[str, ...]:
    words = list(words)
    more = [f"{len(words) - 2 * MOST_NAMED} more"] if len(words) > 2 * MOST_NAMED else []
    return (*words[: 2 * MOST_NAMED], *more)
