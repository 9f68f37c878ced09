"""How far experiments.prepare_data has come, so that the same command goes on after a kill.

While NAME.bin is being made, its tokens, document starts and byte counts grow in
NAME.tokens.partial and so on; progress.json says how many entries of each are whole, and where
reading goes on. It is written after them, so that what it says is always there; what lies behind
that is cut off again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from multiscreen_jax.json_files import check_keys, read_object

FILE = "progress.json"
STREAMS = ("tokens", "starts", "counts")


@dataclass
class Done:
    """Progress of one .bin.

    Attributes:
      tokens, starts, counts: entries of the three arrays.
      text_bytes, lost_bytes: of the documents so far, where the tokenizer counts them.
      file, read: the file that is being read, and how many of its documents are written.
      whole: whether all is.
    """

    tokens: int = 0
    starts: int = 0
    counts: int = 0
    text_bytes: int = 0
    lost_bytes: int = 0
    file: int = 0
    read: int = 0
    whole: bool = False

    @property
    def lost_share(self) -> float:
        return self.lost_bytes / max(1, self.text_bytes)


_STATE = {"command": str, "parts": dict, "cut": int | None}
_KEYS = {entry.name: bool if entry.name == "whole" else int for entry in dataclasses.fields(Done)}


@dataclass
class Journal:
    """The state of one command in its output folder.

    Attributes:
      folder: the output.
      command: identifies inputs and settings.
      dtype: of tokens.
      parts: what is done of "train" and "valid".
      cut: tokens of train.bin, once both files can be put in their places; None before.
    """

    folder: Path
    command: str
    dtype: np.dtype
    parts: dict[str, Done] = field(default_factory=dict)
    cut: int | None = None

    def path(self, name: str, stream: str) -> Path:
        return self.folder / f"{name}.{stream}.partial"

    def width(self, stream: str) -> np.dtype:
        return {"tokens": self.dtype, "starts": np.dtype("<i8"), "counts": np.dtype("<u4")}[stream]

    def array(self, name: str, stream: str) -> np.ndarray:
        """The whole entries of one array, mapped where there are any."""
        count, dtype = getattr(self.parts[name], stream), self.width(stream)
        path = self.path(name, stream)
        return np.memmap(path, dtype, "r", shape=count) if count else np.empty(0, dtype)

    @contextlib.contextmanager
    def appending(self, name: str) -> Iterator[dict[str, BinaryIO]]:
        """The three files, open behind what is whole."""
        with contextlib.ExitStack() as stack:
            files = {}
            for stream in STREAMS:
                path = self.path(name, stream)
                path.touch()
                out = files[stream] = stack.enter_context(path.open("r+b"))
                out.truncate(getattr(self.parts[name], stream) * self.width(stream).itemsize)
                out.seek(0, os.SEEK_END)
            yield files

    def save(self, *files: BinaryIO) -> None:
        """Writes what is done, after the files that hold it have reached the disk."""
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        parts = {name: dataclasses.asdict(done) for name, done in self.parts.items()}
        partial = self.folder / f"{FILE}.partial"
        with partial.open("w", encoding="utf-8") as out:
            json.dump({"command": self.command, "parts": parts, "cut": self.cut}, out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(self.folder / FILE)

    def discard(self) -> None:
        """Removes what was kept for going on."""
        for path in self.folder.glob("*.partial"):
            if path.name.split(".")[1] in STREAMS or path.name.startswith(FILE):
                path.unlink()
        (self.folder / FILE).unlink(missing_ok=True)


def command_digest(**settings: Any) -> str:
    """Identifies everything that decides the bytes of the output."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def open_journal(
    folder: Path, command: str, dtype: np.dtype, overwrite: bool
) -> tuple[Journal, str | None]:
    """The journal that an earlier run of the command left, or a new one; and what to say of it.

    Nothing is removed. ValueError where another command is unfinished, unless that may be
    overwritten.
    """
    fresh = Journal(folder, command, dtype)
    if not (folder / FILE).is_file():
        return fresh, None
    try:
        state = read_object(folder / FILE, keys=_STATE)
        if state["command"] == command:
            found = _found(fresh, state)
        elif overwrite:
            return fresh, f"starts over: {folder / FILE} is of other inputs or settings"
    except ValueError as error:
        return fresh, f"starts over: {error}"
    if state["command"] != command:
        raise ValueError(
            f"{folder} has unfinished token files of other inputs or settings; allowed: the "
            "command that began them, another --output, or --overwrite"
        )
    documents = sum(done.starts for done in found.parts.values())
    return found, f"goes on after {documents:,} documents"


def _found(fresh: Journal, state: dict[str, Any]) -> Journal:
    """The journal of a state that was written; ValueError if its files are not there."""
    path = fresh.folder / FILE
    parts = {
        name: Done(**check_keys(done, f"{path}: {name!r}", _KEYS))
        for name, done in state["parts"].items()
    }
    found = dataclasses.replace(fresh, parts=parts, cut=state["cut"])
    for name, done in parts.items():
        for stream in STREAMS:
            file, least = found.path(name, stream), getattr(done, stream)
            moved = stream == "tokens" and found.cut is not None  # to its place, or cut
            size = file.stat().st_size if file.is_file() else 0
            if not moved and size < least * found.width(stream).itemsize:
                raise ValueError(f"{file} is shorter than {path.name} says")
    return found
