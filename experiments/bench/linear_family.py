"""Ops of the linear and log-linear family, forward and forward + backward, by length.

One sequence, four heads, K = V = 64, float32. All contenders get the same inputs and must find the
same results and gradients (of all inputs). Beside a log-linear op runs its parent, the op without
levels, for the ratio of their times. Examples:

    python -m experiments.bench.linear_family --mamba ~/mamba --fla ~/flash-linear-attention
    python -m experiments.bench.linear_family --lengths 8192 --threads 2 --mamba ~/mamba
    python -m experiments.bench.linear_family --lengths --ours-lengths 1024 4096 16384 65536 131072
    python -m experiments.bench.linear_family --hattention ~/log-linear-attention --ops \\
        log_linear_ssd log_linear_gated_delta_rule --ours-lengths 32768
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.bench import report
from experiments.bench.harness import Contender, Result, Timing, check_same_values, run_interleaved
from experiments.bench.linear_ops import ARGUMENTS, DIM, HEADS, PARENTS
from experiments.bench.linear_references import LINEAR_REFERENCES
from experiments.bench.references import check_allocators, check_checkouts
from multiscreen_jax.train import one_line_errors, options

TOLERANCE = 1e-4  # of the norms of float32 results
PASSES = {"forward": False, "forward + backward": True}


@dataclass(frozen=True)
class LinearFamilyBench:
    """Time the ops of the linear family, ours and PyTorch's.

    Attributes:
        ops: which of them.
        lengths: tokens of the sequence, for all contenders.
        ours_lengths: further lengths, for ours alone.
        mamba: checkout of state-spaces/mamba to compare with.
        fla: checkout of fla-org/flash-linear-attention to compare with.
        hattention: checkout of HanGuo97/log-linear-attention to compare with.
        allocators: settings each PyTorch implementation runs with.
        timing: how everything is run.
        name: of the CSV file in experiments/bench/results.
        output: CSV file in place of that.
    """

    ops: tuple[str, ...] = ("ssd", "gated_delta_rule")
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    ours_lengths: tuple[int, ...] = ()
    mamba: Path | None = None
    fla: Path | None = None
    hattention: Path | None = None
    allocators: tuple[str, ...] = ("default",)
    timing: Annotated[Timing, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Timing)
    name: str = "linear_family"
    output: Path | None = None

    def __post_init__(self) -> None:
        check_allocators(self.allocators)
        check_checkouts(mamba=self.mamba, fla=self.fla, hattention=self.hattention)
        for op in self.ops:
            if op not in ARGUMENTS:
                raise ValueError(f"ops must be among {list(ARGUMENTS)}, got {op!r}")


def contenders(bench: LinearFamilyBench, op: str, length: int, backward: bool) -> list[Contender]:
    """Ours first, then the parent of a log-linear op."""
    arguments = {"length": length, "backward": backward}
    ours = "experiments.bench.linear_ops:ours"
    found = [Contender("ours", ours, {"op": op, **arguments})]
    if op in PARENTS:
        found.append(Contender(PARENTS[op], ours, {"op": PARENTS[op], **arguments}))
    for name, reference in LINEAR_REFERENCES.items():
        checkout = getattr(bench, reference.checkout)
        if reference.op != op or checkout is None or length not in bench.lengths:
            continue
        given = {"reference": name, "checkout": str(checkout.resolve()), **arguments}
        for allocator in bench.allocators:
            factory = "experiments.bench.linear_references:step"
            found.append(Contender(name, factory, given, allocator))
    return found


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """The comparison in words: ratios at every length, and how time and memory grow."""
    lines = []
    for op, kind in dict.fromkeys((row["op"], row["pass"]) for row in rows):
        mine = [row for row in rows if (row["op"], row["pass"]) == (op, kind)]
        for row in mine:
            if row["contender"] != "ours" and "cpu ratio" in row:
                lines.append(f"{op}, {kind}, T={row['T']}: {comparison(row)}")
        mine = [row for row in mine if row["contender"] == "ours" and "cpu min" in row]
        if len(mine) > 2:
            lines.append(f"{op}, {kind}: {growth(mine)}")
    return lines


def comparison(row: dict[str, Any]) -> str:
    """Another contender's times by ours, but ours by the parent's."""
    ratios = [row[f"{time} ratio"] for time in ("cpu", "wall", "cpu min", "wall min")]
    who, whose = f"{row['contender']} ({row['allocator']})", "our"
    if row["contender"] == PARENTS.get(row["op"]):
        ratios = [1 / ratio for ratio in ratios]
        who, whose = "ours", f"{row['contender']}'s"
    cpu, wall, cpu_min, wall_min = (f"{ratio:.1f}" for ratio in ratios)
    return (
        f"{who} takes {cpu} times {whose} CPU time, {wall} times {whose} wall time; "
        f"of minima {cpu_min} and {wall_min} times"
    )


def growth(rows: list[dict[str, Any]]) -> str:
    lengths = np.log([row["T"] for row in rows])
    exponent = np.polyfit(lengths, np.log([row["cpu min"] for row in rows]), 1)[0]
    memory = np.polyfit(lengths, np.log([row["temporaries MB"] for row in rows]), 1)[0]
    return f"time grows as T^{exponent:.2f}, temporary memory as T^{memory:.2f}"


def table(op: str, kind: str, length: int, results: list[Result]) -> list[dict[str, Any]]:
    ours, rows = results[0], []
    for result in results:
        row = {"op": op, "pass": kind, "T": length, **report.timing_row(result, ours)}
        if result is ours:
            row |= result.facts
        elif result.runs and ours.runs:
            for clock in ("cpu", "wall"):
                row[f"{clock} min ratio"] = result.fastest(clock) / ours.fastest(clock)
        rows.append(row)
    return rows


def run(bench: LinearFamilyBench) -> None:
    facts, rows = report.machine_facts(), []
    for op in bench.ops:
        for length in sorted({*bench.lengths, *bench.ours_lengths}):
            for kind, backward in PASSES.items():
                print(f"{op}, {kind}, T={length}", file=sys.stderr)
                entrants = contenders(bench, op, length, backward)
                results = run_interleaved(
                    entrants, bench.timing, lambda s: print(s, file=sys.stderr)
                )
                same = [r for r in results if r.contender.name != PARENTS.get(op)]
                check_same_values(same, TOLERANCE)
                rows += table(op, kind, length, results)
    setting = f"B=1, H={HEADS}, K=V={DIM}, float32, {bench.timing.threads} thread(s); milliseconds"
    output = bench.output or report.RESULTS / f"{bench.name}.csv"
    report.publish(rows, output, [setting, *notes(rows)], facts)


if __name__ == "__main__":
    with one_line_errors():
        run(options.read(LinearFamilyBench, prog="python -m experiments.bench.linear_family"))
