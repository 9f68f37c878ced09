"""The tables of the studies: CSV files in which every row says how it came about."""

import csv
import subprocess
from pathlib import Path

from experiments.paper.study import Row, Run

FOLDER = Path(__file__).parent / "results"


def read(study: str, folder: Path = FOLDER) -> list[Row]:
    """The rows of a study, numbers as numbers; empty before its first run."""
    path = folder / f"{study}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: _value(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def add(study: str, run: Run, measured: list[Row], seconds: float, folder: Path = FOLDER) -> None:
    """Puts the rows of a run in place of those it had; the file is ordered by run."""
    facts = {
        "seed": run.seed,
        "wall_seconds": round(seconds, 1),
        "commit": commit(),
        "command": f"python -m experiments.paper run {study} --only {run.name} --again",
    }
    rows = [{"run": run.name, **run.columns, **row, **facts} for row in measured]
    rows = [row for row in read(study, folder) if row["run"] != run.name] + rows
    columns = list(dict.fromkeys(name for row in rows for name in row))
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{study}.part"
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["run"]))
    part.replace(folder / f"{study}.csv")


def commit() -> str:
    """The checkout's commit; "+" if files that git knows were changed since."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        ended = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True)
        return ended.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", ":!results", ":!RESULTS.md")
    return (git("rev-parse", "--short=10", "HEAD") or "unknown") + ("+" if changed else "")


def _value(cell: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell
