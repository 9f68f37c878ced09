"""The one check of every path that comes from outside."""

import os
import re
from pathlib import Path

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib makes one slash of two
_LFS_BYTES = 1024  # which no pointer reaches
_LFS = b"version https://git-lfs.github.com/spec/"


def checked_path(given: object, name: str = "path") -> Path:
    """`given` as a Path; ValueError in one line where no file of this machine can be called so.

    An address such as gs://bucket/run would become a folder called gs: where the process stands.
    """
    if not isinstance(given, str | os.PathLike) or not os.fspath(given):
        raise ValueError(f"{name} is {given!r}; allowed: the path of a file or folder")
    text = os.fsdecode(given)
    try:
        if b"\0" in os.fsencode(text):
            raise ValueError(f"{name} is {text!r}; allowed: a path without the NUL character")
    except UnicodeEncodeError:
        raise ValueError(f"{name} is {text!r}; allowed: characters that a file name has") from None
    if _ADDRESS.match(text):
        raise ValueError(
            f"{name} is {text!r}; allowed: a path on a mount that all hosts share, which a bucket "
            "can be, or on a local disk"
        )
    return Path(text)


def expanded_path(given: object, name: str = "path") -> Path:
    """The same with "~" as the home folder."""
    path = checked_path(given, name)
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name} is {str(path)!r}: {error}") from None


def refuse_lfs_pointer(path: Path) -> None:
    """ValueError in one line for the small text that git-lfs leaves in place of a large file."""
    if path.stat().st_size > _LFS_BYTES:
        return
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise ValueError(
                f"{path} is a git-lfs pointer, not the file itself; fetch it with: git lfs pull"
            )
