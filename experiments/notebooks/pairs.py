"""Notebooks as pairs: NAME.py is what is written, NAME.ipynb the same cells with their outputs."""

import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
PATIENCE = 600  # seconds for a cell: other work may go on meanwhile


def sources() -> list[Path]:
    """The .py files of all pairs, in reading order."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def cells(notebook: Any) -> list[tuple[str, str]]:
    """(kind, text) of every cell, by which two notebooks are compared."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def read(path: Path) -> Any:
    """The notebook of a .py or .ipynb file."""
    return jupytext.read(path)


class Took(NamedTuple):
    seconds: float  # of the clock
    processor: float  # seconds of all cores


def execute(source: Path, instead: Mapping[str, str] | None = None) -> tuple[Any, Took]:
    """(the notebook of a .py file with outputs, what that took), run in an empty folder.

    Args:
      instead: passages of its code, and what is run in place of each: fewer steps, say.

    Raises:
      ValueError: a passage is not in the code.
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = read(source)
    for passage, other in (instead or {}).items():
        if not any(passage in cell.source for cell in notebook.cells):
            raise ValueError(f"{source.name} has no {passage!r}")
        for cell in notebook.cells:
            cell.source = cell.source.replace(passage, other)
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # random ones would change with every run
    start, before = time.perf_counter(), _children()
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=PATIENCE,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    return notebook, Took(time.perf_counter() - start, _children() - before)


def write(source: Path) -> Took:
    """Executes a .py file and writes the .ipynb beside it; returns what it took."""
    notebook, took = execute(source)
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    return took


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # kernels that have ended
    return used.ru_utime + used.ru_stime
