"""Paths of this machine's file systems, told from addresses of object stores."""

import os
import re

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib makes one slash of two


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
