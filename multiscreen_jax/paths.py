"""The one check of every path that comes from outside."""

import os
from pathlib import Path


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
