"""The tables of the studies: CSV files in which every row says how it came about."""

import csv
from pathlib import Path

from experiments.paper.execute import Executed
from experiments.paper.study import Row, Run

FOLDER = Path(__file__).parent / "results"


def read(study: str, folder: Path = FOLDER) -> list[Row]:
    """The rows of a study, numbers as numbers; empty before its first run."""
    path = folder / f"{study}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{n: _value(n, cell) for n, cell in row.items()} for row in csv.DictReader(file)]


def add(
    study: str, run: Run, measured: list[Row], executed: Executed, folder: Path = FOLDER
) -> None:
    """Puts the rows of a run in place of those it had; the file is ordered by run."""
    facts = {
        "seed": run.seed,
        "wall_seconds": round(executed.seconds, 1),
        "commit": executed.commit,
        "command": f"python -m experiments.paper run {study} --only {run.name} --again",
    }
    rows = [{"run": run.name, **run.columns, **row, **facts} for row in measured]
    rows = [row for row in read(study, folder) if row["run"] != run.name] + rows
    columns = list(dict.fromkeys(name for row in rows for name in row))
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{study}.part"
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["run"]))
    part.replace(folder / f"{study}.csv")


# A commit such as 12e4567890 is no number.
_TEXT = ("run", "commit", "command")


def _value(name: str, cell: str) -> int | float | str:
    for kind in () if name in _TEXT else (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell
