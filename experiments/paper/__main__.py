"""Runs studies and rewrites RESULTS.md: see the package's docstring."""

import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.paper import document, results
from experiments.paper.execute import RunFailed, commands, execute, move_away
from experiments.paper.study import SCALES, load, names
from experiments.paper.study import Run as StudyRun
from multiscreen_jax.ownership import owned
from multiscreen_jax.paths import require_local
from multiscreen_jax.train import one_line_errors
from multiscreen_jax.train.errors import is_ours

Names = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="STUDY")]


@dataclass(frozen=True)
class List:
    """Print the studies; of those that are named the runs, and the commands of each."""

    studies: Names = ()
    scale: str = "small"
    """small: what was run for RESULTS.md. paper: the papers' sizes and budgets."""


@dataclass(frozen=True)
class Run:
    """Train and measure what the tables do not hold yet, and rewrite RESULTS.md."""

    studies: Names = ()
    """All, if none is named."""
    only: tuple[str, ...] = ()
    """Runs, of all that the studies have."""
    again: bool = False
    """Also runs whose rows are there, and all from the start: what their folders hold, and those of
    the runs they need, moves to NAME.old1 and so on."""
    folder: Path = Path("runs/paper")
    """Where runs keep their files."""
    scale: str = "small"
    """small or paper. Tables, page and figures of the latter go to FOLDER."""


@dataclass(frozen=True)
class Report:
    """Rewrite RESULTS.md and the figures from the tables."""

    output: Path | None = None
    """The page; figures go beside it. If not given, as `run` writes it."""
    folder: Path = Path("runs/paper")
    """Where runs at the paper's scale left their tables."""
    scale: str = "small"
    """small or paper."""


def main() -> None:
    with one_line_errors():
        chosen = tyro.extras.subcommand_cli_from_dict(
            {"list": List, "run": Run, "report": Report}, prog="python -m experiments.paper"
        )
        if chosen.scale not in SCALES:
            raise ValueError(f"--scale is {chosen.scale!r}; allowed: {', '.join(SCALES)}")
        # Here, since they are the process's: whoever calls `show` or `run` keeps their own.
        if isinstance(chosen, List):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader may have seen enough
        if isinstance(chosen, Run):
            # As an exception it also ends the command that is running.
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        {List: show, Run: run, Report: report}[type(chosen)](chosen)


def show(chosen: List) -> None:
    if not chosen.studies:
        for name in names():
            study = load(name)
            print(f"{name}: {study.TITLE}; {len(study.runs(chosen.scale))} runs")
        return
    for name, one in _runs(chosen):
        print(f"{name}: {one.name}")
        for _, command in commands(one, Path("RUNS") / one.name):
            print(f"  python -m {command}")


def run(chosen: Run) -> None:
    require_local("--folder", chosen.folder)
    planned = list(_runs(chosen))
    known = {one.name for _, one in planned}
    if unknown := sorted(set(chosen.only) - known):
        raise ValueError(f"--only has {', '.join(unknown)}; allowed: {', '.join(sorted(known))}")
    with owned(chosen.folder):  # two would move each other's runs away
        failed = _run_all(chosen, planned)
    report(Report(folder=chosen.folder, scale=chosen.scale))
    if failed:
        print(f"error: without results: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


def _run_all(chosen: Run, planned: list[tuple[str, StudyRun]]) -> list[str]:
    """Names of the runs that failed."""
    tables, failed, moved = _tables(chosen), [], set()
    for name, one in planned:
        done = {row["run"] for row in results.read(name, tables)}
        wanted = (one.name in chosen.only or not chosen.only) and one.name not in failed
        if not wanted or (one.name in done and not chosen.again):
            continue
        folder = chosen.folder / chosen.scale / one.name
        if chosen.again:
            # Once each: another study may have started a shared run anew.
            for path in {path.parent for path, _ in commands(one, folder)} - moved:
                move_away(path)
                moved.add(path)
        try:
            executed = execute(one, folder)
            results.add(name, one, load(name).measure(one, folder), executed, tables)
        except Exception as error:  # the others may go well
            told = isinstance(error, RunFailed) or is_ours(error)
            print(f"error: {error}" if told else traceback.format_exc(), file=sys.stderr)
            failed.append(one.name)
            continue
        print(f"{name}: {one.name}, {executed.seconds:.0f} s", flush=True)
    return failed


def report(chosen: Report) -> None:
    require_local("--folder", chosen.folder)
    require_local("--output", chosen.output or "")
    page = document.PATH if chosen.scale == "small" else chosen.folder / document.PATH.name
    page = chosen.output or page
    document.write(page, _tables(chosen), chosen.scale)
    print(f"written: {page}")


def _tables(chosen: Run | Report) -> Path:
    return results.FOLDER if chosen.scale == "small" else chosen.folder / results.FOLDER.name


def _runs(chosen: List | Run) -> Iterator[tuple[str, StudyRun]]:
    for name in chosen.studies or names():
        for one in load(name).runs(chosen.scale):
            yield name, one


if __name__ == "__main__":
    main()
