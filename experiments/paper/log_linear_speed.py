"""Speed of the log-linear ops against length (the speed figure of "Log-Linear Attention").

The paper times its kernels on an H100 against FlashAttention-2, which they overtake beyond 8K
tokens. Here: our chunk form on one CPU thread against the parent, the same op without levels, at
one sequence, four heads and K = V = 64. Levels grow with the logarithm of the length, and so should
the ratio.

    python -m experiments.paper run log_linear_speed

It gave: forward and backward together 1.7 to 2.4 times the parent's time, without a trend from 1K
to 32K tokens, where eleven levels become sixteen.
"""

import csv
from pathlib import Path

from matplotlib.figure import Figure

from experiments.paper import plots
from experiments.paper.study import Row, Run

TITLE = "Log-linear ops: speed against length"
LENGTHS = {"small": range(10, 16), "paper": range(10, 18)}  # powers of two
_PARENTS = {"log_linear_ssd": "ssd", "log_linear_gated_delta_rule": "gated_delta_rule"}


def runs(scale: str) -> list[Run]:
    """The paper's scale is that of its lengths; GPUs have `experiments.bench.gpu_linear_run`."""
    lengths = " ".join(str(2**n) for n in LENGTHS[scale])
    command = (
        f"experiments.bench.linear_family --lengths --ours-lengths {lengths} --rounds 3 "
        "--output {run}/table.csv --ops"
    )
    return [Run(f"log_linear_speed-{op}", (f"{command} {op}",), 0, {"op": op}) for op in _PARENTS]


def measure(run: Run, folder: Path) -> list[Row]:
    """The fastest of the rounds, of the op and of its parent."""
    lines = (folder / "table.csv").read_text().splitlines()
    return [
        {
            "contender": run.columns["op"] if row["contender"] == "ours" else row["contender"],
            "pass": row["pass"],
            "length": row["T"],
            "cpu_ms": row["cpu min"],
            "wall_ms": row["wall min"],
        }
        for row in csv.DictReader(line for line in lines if not line.startswith("#"))
    ]


def figure(rows: list[Row]) -> Figure:
    passes = plots.groups(rows, "pass")
    drawn, axes = plots.panels(len(passes), sharey=True)
    for ax, ((name,), cells) in zip(axes, passes.items(), strict=True):
        for (op, contender), one in plots.groups(cells, "op", "contender").items():
            style = {"color": "#4d7a4f" if "ssd" in op else "#d08a2e", "label": contender}
            lengths = [row["length"] for row in one]
            dash = "-" if op == contender else ":"
            ax.plot(lengths, [row["cpu_ms"] for row in one], dash, marker="o", ms=3.5, **style)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ticks = sorted({row["length"] for row in cells})
        ax.set_xticks(ticks, [plots.short(tick) for tick in ticks])
        ax.minorticks_off()
        ax.set_xlabel("tokens")
        ax.set_title(name, fontsize=10, color=plots.INK)
    axes[0].set_ylabel("CPU time (ms)")
    axes[0].legend(frameon=False, fontsize=8)
    return drawn


def report(rows: list[Row]) -> str:
    lines = []
    for (op, name), one in plots.groups(rows, "op", "pass").items():
        times = {(row["contender"], row["length"]): row["cpu_ms"] for row in one}
        ratios = {
            plots.short(length): f"{times[op, length] / times[_PARENTS[op], length]:.2f}"
            for contender, length in times
            if contender == op
        }
        lines.append({"": f"{op}, {name}", **ratios})
    return (
        "CPU time by that of the parent, by tokens, least of three rounds:\n\n"
        f"{plots.table(lines)}\n\n{_verdict(rows)}"
    )


def _verdict(rows: list[Row]) -> str:
    """By how much the ratio grows from the shortest sequence to the longest."""
    texts = []
    for (op, name), one in plots.groups(rows, "op", "pass").items():
        times = {(row["contender"], row["length"]): row["cpu_ms"] for row in one}
        ends = [pick(length for _, length in times) for pick in (min, max)]
        first, last = (times[op, n] / times[_PARENTS[op], n] for n in ends)
        texts.append(f"{last / first:.2f} ({op}, {name})")
    return (
        f"From the shortest to the longest the ratio grows by a factor of {', '.join(texts)}; the "
        "states that a chunk reads grow as the logarithm of the number of chunks, here "
        f"{ends[1] / ends[0]:g} times as many. Softmax attention, with which the paper compares, "
        "is not in this table."
    )
