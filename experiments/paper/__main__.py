"""Runs studies and rewrites RESULTS.md: see the package's docstring."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from experiments.paper import document, results
from experiments.paper.execute import execute
from experiments.paper.study import SCALES, load, names
from multiscreen_jax.train import one_line_errors

Names = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="STUDY")]


@dataclass(frozen=True)
class List:
    """Print the studies, their runs, and the commands of each."""

    studies: Names = ()
    """All, if none is named."""
    scale: str = "small"
    """small: what was run for RESULTS.md. paper: the papers' sizes and budgets."""


@dataclass(frozen=True)
class Run:
    """Train and measure what the tables do not hold yet."""

    studies: Names = ()
    """All, if none is named."""
    only: tuple[str, ...] = ()
    """Runs, of all that the studies have."""
    again: bool = False
    """Also runs whose rows are there."""
    folder: Path = Path("runs/paper")
    """Where runs keep their files."""
    scale: str = "small"
    """small or paper. Results of the latter go to FOLDER/results."""


@dataclass(frozen=True)
class Report:
    """Rewrite RESULTS.md and the figures from the tables."""

    output: Path = field(default=document.PATH)


def main() -> None:
    with one_line_errors():
        chosen = tyro.extras.subcommand_cli_from_dict(
            {"list": List, "run": Run, "report": Report}, prog="python -m experiments.paper"
        )
        {List: show, Run: run, Report: report}[type(chosen)](chosen)


def show(chosen: List) -> None:
    for name, one in _runs(chosen):
        print(f"{name}: {one.name}")
        for command in one.commands:
            print(f"  python -m {command.format(run='RUN')}")


def run(chosen: Run) -> None:
    tables = results.FOLDER if chosen.scale == "small" else chosen.folder / "results"
    planned = list(_runs(chosen))
    known = {one.name for _, one in planned}
    if unknown := sorted(set(chosen.only) - known):
        raise ValueError(f"--only has {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    for name, one in planned:
        done = {row["run"] for row in results.read(name, tables)}
        if (chosen.only and one.name not in chosen.only) or (one.name in done and not chosen.again):
            continue
        folder = chosen.folder / chosen.scale / one.name
        seconds = execute(one, folder)
        results.add(name, one, load(name).measure(one, folder), seconds, tables)
        print(f"{name}: {one.name}, {seconds:.0f} s", flush=True)


def report(chosen: Report) -> None:
    document.write(chosen.output)
    print(f"written: {chosen.output}")


def _runs(chosen):
    if chosen.scale not in SCALES:
        raise ValueError(f"--scale is {chosen.scale!r}; allowed: {', '.join(SCALES)}")
    for name in chosen.studies or names():
        for one in load(name).runs(chosen.scale):
            yield name, one


if __name__ == "__main__":
    main()
