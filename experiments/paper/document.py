"""RESULTS.md and its figures, from the studies' tables alone."""

import inspect
from pathlib import Path

from experiments.paper import results
from experiments.paper.study import load, names

PATH = Path(__file__).parent / "RESULTS.md"
FIGURES = "figures"

_OPENING = """# Results

Every number here comes from a table in [`results`](results), whose rows carry the commit, the seed,
the wall time and the command that made them; this page and its figures are made from the tables
alone, by `python -m experiments.paper report`. All runs are small: minutes on one core of a shared
2-core virtual machine. They show which of the papers' findings can be seen at that scale.
"""


def write(path: Path) -> None:
    """Writes the page and, beside it, one PNG file per study."""
    parts = [_OPENING]
    for name in names():
        study, rows = load(name), results.read(name)
        parts.append(f"## {study.TITLE}\n\n{_about(study)}\n")
        if not rows:
            parts.append(f"Not run yet: `python -m experiments.paper run {name}`.\n")
            continue
        figure = path.parent / FIGURES / f"{name}.png"
        figure.parent.mkdir(exist_ok=True)
        # Without a version in its metadata a figure changes only if its picture does.
        study.figure(rows).savefig(figure, dpi=120, metadata={"Software": None})
        parts.append(f"![{study.TITLE}]({FIGURES}/{name}.png)\n\n{study.report(rows).strip()}\n")
        parts.append(f"[Table](results/{name}.csv), [study]({name}.py).\n")
    path.write_text("\n".join(parts))


def _about(study) -> str:
    """The docstring, without the command at its end and what it gave, which the table says."""
    paragraphs = inspect.getdoc(study).split("\n\n")
    return "\n\n".join(text for text in paragraphs if not text.startswith(("    ", "It gave")))
