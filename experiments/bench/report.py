"""Tables of results: on the screen and as CSV, headed by the command and the machine's facts."""

import csv
import datetime
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.bench.harness import MEGABYTE, Result

RESULTS = Path(__file__).parent / "results"


def machine_facts() -> list[str]:
    """What a reader has to know to compare these numbers with others."""
    versions = []
    for package in ("jax", "jaxlib", "torch", "multiscreen", "transformers"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} absent")
    return [
        f"date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"machine: {_cpu_model()}, {os.cpu_count()} cores, {_total_memory_gb():.0f} GB, "
        f"{platform.machine()}, {' '.join(platform.libc_ver())}",
        f"load (1, 5, 15 minutes): {', '.join(f'{x:.1f}' for x in os.getloadavg())}",
        f"versions: Python {platform.python_version()}, {', '.join(versions)}",
    ]


def command() -> str:
    """The command line of this process, as a user would type it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {spec.name}" if spec is not None else f"python {sys.argv[0]}"
    return " ".join([program, *(f"'{a}'" if " " in a else a for a in sys.argv[1:])])


def timing_row(result: Result, baseline: Result | None = None) -> dict[str, Any]:
    """Milliseconds and megabytes of one contender, and its ratio to the baseline's medians."""
    row: dict[str, Any] = {
        "contender": result.contender.name,
        "allocator": result.contender.allocator,
        "runs": len(result.runs),
    }
    if not result.runs:
        return {**row, "note": result.failure or "not run"}
    for clock in ("cpu", "wall"):
        row[f"{clock} ms"] = result.median(clock) * 1e3
        row[f"{clock} min"] = result.fastest(clock) * 1e3
    if baseline is not None and baseline.runs:
        for clock in ("cpu", "wall"):
            row[f"{clock} ratio"] = result.median(clock) / baseline.median(clock)
    row["peak MB"] = round(result.peak / MEGABYTE)
    if result.failure:
        row["note"] = result.failure
    return row


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table with aligned columns."""
    columns = _columns(rows)
    cells = [columns, *([_text(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    numeric = [all(_is_number(row.get(column)) for row in rows) for column in columns]

    def line(values: Sequence[str]) -> str:
        padded = (
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, numeric, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = (
        "-" * (width - 1) + (":" if right else "-")
        for width, right in zip(widths, numeric, strict=True)
    )
    return "\n".join([line(cells[0]), f"| {' | '.join(rule)} |", *map(line, cells[1:])])


def write_csv(path: Path, rows: Sequence[dict[str, Any]], header: Sequence[str]) -> None:
    """The rows, after the header as comment lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {line}\n" for line in header)
        writer = csv.DictWriter(file, _columns(rows), restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: _text(v) for k, v in row.items()})


def publish(
    rows: Sequence[dict[str, Any]], output: Path, notes: Sequence[str], facts: Sequence[str]
) -> None:
    """Print the table and its notes, and write both as CSV.

    `facts` are `machine_facts()` from before the runs: the load they saw, not the one they made.
    """
    write_csv(output, rows, [f"command: {command()}", *facts, *notes])
    print("\n" + markdown(rows) + "\n")
    for note in notes:
        print(note)
    print(f"written to {output}")


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(column for row in sorted(rows, key=len)[::-1] for column in row))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":")[1].strip() for line in info if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def _total_memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
