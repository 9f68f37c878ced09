"""A checksum of every file of a finished checkpoint, so that damage is found before it is used.

`manifest.json` lies inside the checkpoint's folder and is the last file written there: a folder
without one was never finished, or has lost it.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multiscreen_jax.json_files import check_keys, read_object

NAME = "manifest.json"
_FORMAT = 1
_KEYS = {"format": int, "facts": dict, "files": dict, "sha256": str}
_FACTS_KEYS = {"step": int, "validation_loss": object}
_ENTRY_KEYS = {"bytes": int, "sha256": str}
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class DamagedCheckpoint(ValueError):
    """A checkpoint that must not be used; the message names the file and the reason."""


def write(folder: Path, facts: dict[str, Any]) -> None:
    """Writes the manifest of all files now in `folder`, atomically, with some facts beside."""
    files = {
        name: {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for name, path in _files(folder).items()
    }
    body = {"format": _FORMAT, "facts": facts, "files": files}
    temporary = folder.parent / f".{folder.name}.{NAME}.tmp"
    with temporary.open("w") as stream:
        json.dump({**body, "sha256": _digest_of(body)}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / NAME)


def read(folder: Path) -> dict[str, Any]:
    """The facts of a manifest.

    Raises:
      DamagedCheckpoint: there is none, or it is not what was written.
    """
    return _read_body(folder)["facts"]


def verify(folder: Path) -> dict[str, Any]:
    """Reads every file of a checkpoint and compares; returns the manifest's facts.

    Raises:
      DamagedCheckpoint: a file is missing, has another length or other bytes.
      ValueError: a file that is there cannot be read, which is no damage.
    """
    body = _read_body(folder)
    with _reading(folder):
        _compare_sizes(folder, body)
        for name, expected in body["files"].items():
            if _digest(folder / name) != expected["sha256"]:
                raise DamagedCheckpoint(f"{folder / name} does not match its SHA-256 checksum")
    return body["facts"]


def is_complete(folder: Path) -> bool:
    """Whether every file that the manifest lists is there at its length; no file is read."""
    try:
        body = _read_body(folder)
        with _reading(folder):
            _compare_sizes(folder, body)
    except DamagedCheckpoint:
        return False
    return True


def seal_of(folder: Path) -> str:
    """The manifest's own checksum, which no two checkpoints share."""
    return _read_body(folder)["sha256"]


def exists(folder: Path) -> bool:
    """Whether the folder has a manifest (good or not)."""
    return (folder / NAME).is_file()


def _read_body(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    with _reading(folder):
        try:
            body = read_object(path, f"{path} cannot be read", _KEYS)
            check_keys(body["facts"], f"{path}: facts", _FACTS_KEYS)
            for name, entry in body["files"].items():
                check_keys(entry, f"{path}: {name!r}", _ENTRY_KEYS)
        except ValueError as error:
            raise DamagedCheckpoint(str(error)) from None
    stated = {name: value for name, value in body.items() if name != "sha256"}
    if body["sha256"] != _digest_of(stated):
        raise DamagedCheckpoint(f"{path} does not match its SHA-256 checksum")
    if body["format"] != _FORMAT:
        raise DamagedCheckpoint(f"{path} has format {body['format']}; this version reads {_FORMAT}")
    loss = body["facts"]["validation_loss"]  # NaN is one
    if loss is not None and not isinstance(loss, int | float):
        raise DamagedCheckpoint(f"{path} gives no validation_loss, a number or null")
    return body


def _compare_sizes(folder: Path, body: dict[str, Any]) -> None:
    present = _files(folder)
    for name, expected in body["files"].items():
        if name not in present:
            raise DamagedCheckpoint(f"{folder / name} is missing")
        size = present[name].stat().st_size
        if size != expected["bytes"]:
            raise DamagedCheckpoint(
                f"{folder / name} has {size} bytes instead of {expected['bytes']}"
            )


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """A file that is gone is damage; one that cannot be read now may be whole."""
    try:
        yield
    except OSError as error:
        path = error.filename or folder
        if error.errno in _GONE:
            raise DamagedCheckpoint(f"{path} is missing") from None
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None


def _files(folder: Path) -> dict[str, Path]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / NAME
    }


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
