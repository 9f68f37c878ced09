"""What a study is: runs, each a few commands, and what to read from the files they leave.

A study is a module of this package with

    TITLE      a heading
    runs(scale) -> list[Run]                        scale "small" or "paper"
    measure(run, folder) -> list[dict]              rows of the CSV, without the run's own columns
    figure(rows) -> Figure                          from all rows of the CSV
    report(rows) -> str                             Markdown, numbers computed from the rows

and a docstring that says which figure of which paper it is.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from matplotlib.figure import Figure

from experiments import paper
from multiscreen_jax.data.config import near_matches

Row = dict[str, Any]
SCALES = ("small", "paper")


@dataclass(frozen=True)
class Run:
    """Commands after `python -m`, in which {run} is a folder of the run's own.

    Studies that name the same run share its folder, and train it once; so do those whose runs need
    the same run, of which commands read {runs}/NAME.
    """

    name: str
    commands: tuple[str, ...]
    seed: int = 0
    columns: Row = field(default_factory=dict)
    """What of the study varies, as columns of its rows."""
    needs: tuple["Run", ...] = ()
    """Runs that come first."""


class Study(Protocol):
    """The module of a study."""

    __doc__: str
    TITLE: str
    runs: Callable[[str], list[Run]]
    measure: Callable[[Run, Path], list[Row]]
    figure: Callable[[list[Row]], Figure]
    report: Callable[[list[Row]], str]


def names() -> list[str]:
    """All studies, in the order of RESULTS.md."""
    return list(_STUDIES)


def load(name: str) -> Study:
    """The study of a name."""
    if name not in names():
        near = near_matches(name, names())
        raise ValueError(f"there is no study {name!r}{near}; known: {', '.join(names())}")
    return importlib.import_module(f"{paper.__name__}.{name}")


_STUDIES = (
    "learning_rates",
    "loss_curves",
    "embedding_rows",
    "scaling",
    "positions",
    "abcdigits",
    "long_context",
    "windows",
    "mqar",
    "log_linear_positions",
    "log_linear_speed",
)
