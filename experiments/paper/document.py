"""RESULTS.md and its figures, from the studies' tables alone."""

import inspect
from pathlib import Path

import matplotlib

from experiments.paper import results
from experiments.paper.study import Row, Study, load, names

PATH = Path(__file__).parent / "RESULTS.md"
FIGURES = "figures"
SOFTWARE = f"matplotlib {matplotlib.__version__}"  # in each figure: another draws other pixels

_OPENING = """# Results

Every number here comes from a table in [`results`](results), whose rows carry the commit, the seed,
the wall time and the command that made them; this page and its figures are made from the tables
alone, by `{command}`. {runs}
"""
_SMALL = """All runs are small: minutes to an hour each
on a virtual machine of two cores, which other runs shared (times of studies whose subject is time
were taken alone). They show which of the papers' findings can be seen at that scale."""
_PAPER = "All runs have the papers' sizes and budgets."


def write(path: Path, tables: Path = results.FOLDER, scale: str = "small") -> None:
    """Writes the page and, beside it, one PNG file per study."""
    figures = path.parent / FIGURES
    figures.mkdir(parents=True, exist_ok=True)
    command = "python -m experiments.paper report" + f" --scale {scale}" * (scale != "small")
    runs = _SMALL if scale == "small" else _PAPER
    parts = [_OPENING.format(command=command, runs=runs)]
    for name in names():
        study, rows = load(name), results.read(name, tables)
        parts.append(f"## {study.TITLE}\n\n{_about(study, scale)}\n")
        if not rows:
            run = command.replace("report", f"run {name}")
            parts.append(f"Not run yet: `{run}`.\n")
            continue
        figure = study.figure(rows)
        figure.savefig(figures / f"{name}.png", dpi=120, metadata={"Software": SOFTWARE})
        parts.append(f"![{study.TITLE}]({FIGURES}/{name}.png)\n\n{study.report(rows).strip()}\n")
        parts.append(f"{_coverage(study, rows, scale)}: [table](results/{name}.csv).\n")
    path.write_text("\n".join(parts), encoding="utf-8")


def _coverage(study: Study, rows: list[Row], scale: str) -> str:
    planned = {run.name for run in study.runs(scale)}
    found = planned & {row["run"] for row in rows}
    return f"{len(found)} of {len(planned)} runs of the plan (`{study.__name__}`)"


def _about(study: Study, scale: str) -> str:
    """The docstring, less the command, what it gave (the report says that), the other scale."""
    left_out = ("    ", "It gave", *(["At the paper's scale"] if scale == "small" else []))
    paragraphs = inspect.getdoc(study).split("\n\n")
    return "\n\n".join(text for text in paragraphs if not text.startswith(left_out))
