"""Paths that come from outside: checked, and told from addresses of object stores."""

import os
import re
from pathlib import Path

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib makes one slash of two


def checked_path(given: object, name: str = "path") -> Path:
    """`given` as a Path, "~" expanded; ValueError in one line where no file can be called so."""
    if not isinstance(given, str | os.PathLike) or not os.fspath(given):
        raise ValueError(f"{name} is {given!r}; allowed: the path of a file or folder")
    text = os.fsdecode(given)
    try:
        if b"\0" in os.fsencode(text):
            raise ValueError(f"{name} is {text!r}; allowed: a path without the NUL character")
    except UnicodeEncodeError:
        raise ValueError(f"{name} is {text!r}; allowed: characters that a file name has") from None
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # a home that nobody has
        raise ValueError(f"{name} is {text!r}: {error}") from None


def require_local(name: str, given: str | os.PathLike) -> None:
    """One-line ValueError for an address such as gs://bucket/run, or what no file system takes.

    As a path it would become a folder called gs: below the working directory.
    """
    path = os.fsdecode(given)
    if _ADDRESS.match(path) or "\0" in path:
        raise ValueError(
            f"{name} is {path!r}; allowed: a path on a mount that all hosts share, which a bucket "
            "can be, or on a local disk"
        )
