"""Notebooks as pairs: NAME.py is what is written, NAME.ipynb the same cells with their outputs."""

import tempfile
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
SECONDS = 120  # for one cell, and at most this for a notebook


def sources() -> list[Path]:
    """The .py files of all pairs, in reading order."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def cells(notebook: Any) -> list[tuple[str, str]]:
    """(kind, text) of every cell, by which two notebooks are compared."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def read(path: Path) -> Any:
    """The notebook of a .py or .ipynb file."""
    return jupytext.read(path)


def execute(source: Path) -> tuple[Any, float]:
    """(the notebook of a .py file with outputs, seconds it took), run in an empty folder.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = read(source)
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # random ones would change with every run
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    return notebook, time.perf_counter() - start


def write(source: Path) -> float:
    """Executes a .py file and writes the .ipynb beside it; returns the seconds it took."""
    notebook, seconds = execute(source)
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    return seconds
