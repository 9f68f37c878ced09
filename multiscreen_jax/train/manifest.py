"""A checksum of every file of a finished checkpoint, so that damage is found before it is used.

`manifest.json` lies inside the checkpoint's folder and is the last file written there: a folder
without one was never finished, or has lost it.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from multiscreen_jax.json_files import check_keys, read_object

NAME = "manifest.json"
_FORMAT = 1
_KEYS = {"format": int, "facts": dict, "files": dict, "sha256": str}
_FACTS_KEYS = {"step": int, "validation_loss": object}
_ENTRY_KEYS = {"bytes": int, "sha256": str}


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
    """
    body = _read_body(folder)
    present = _files(folder)
    for name, expected in body["files"].items():
        if name not in present:
            raise DamagedCheckpoint(f"{folder / name} is missing")
        size = present[name].stat().st_size
        if size != expected["bytes"]:
            raise DamagedCheckpoint(
                f"{folder / name} has {size} bytes instead of {expected['bytes']}"
            )
        if _digest(present[name]) != expected["sha256"]:
            raise DamagedCheckpoint(f"{folder / name} does not match its SHA-256 checksum")
    return body["facts"]


def exists(folder: Path) -> bool:
    """Whether the folder has a manifest (good or not)."""
    return (folder / NAME).is_file()


def _read_body(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    if not path.is_file():
        raise DamagedCheckpoint(f"{path} is missing")
    try:
        body = read_object(path, f"{path} cannot be read", _KEYS)
        check_keys(body["facts"], f"{path}: facts", _FACTS_KEYS)
        for name, entry in body["files"].items():
            check_keys(entry, f"{path}: {name!r}", _ENTRY_KEYS)
    except ValueError as error:
        raise DamagedCheckpoint(str(error)) from None
    if body.pop("sha256") != _digest_of(body):
        raise DamagedCheckpoint(f"{path} does not match its SHA-256 checksum")
    if body["format"] != _FORMAT:
        raise DamagedCheckpoint(f"{path} has format {body['format']}; this version reads {_FORMAT}")
    return body


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
