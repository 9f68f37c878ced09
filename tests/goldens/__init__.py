"""Recorded outputs and gradients of the PyTorch references (see README.md beside this file).

A subset lies here. `MULTISCREEN_GOLDENS=dir` points at a full set, laid out the same way.
"""

import os
from pathlib import Path

import pytest

_HERE = Path(__file__).parent


def golden_path(name: str) -> Path:
    """Path of one golden file, for example "multiscreen/unit_T33.npz"; skips if it is absent."""
    folders = [Path(os.environ[v]) for v in ("MULTISCREEN_GOLDENS",) if v in os.environ]
    for folder in [*folders, _HERE]:
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"golden file {name} is in the full set only: set MULTISCREEN_GOLDENS")


def golden_names(family: str, pattern: str) -> list[str]:
    """All golden files of a family that match a glob, full set included."""
    folders = [_HERE] + [Path(os.environ[v]) for v in ("MULTISCREEN_GOLDENS",) if v in os.environ]
    return sorted({f"{family}/{p.name}" for d in folders for p in (d / family).glob(pattern)})
