"""The findings for a reader, and as a row of a table."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.aot.advice import advice
from experiments.aot.chips import GIB
from experiments.aot.collectives import by_kind
from experiments.aot.findings import Findings
from experiments.aot.program import Program
from experiments.bench.report import markdown, write_csv


def text(found: Findings) -> str:
    """All of it, a paragraph for each question."""
    parts = [_what(found), _memory(found), _flops(found)]
    if isinstance(found.program, Program):
        parts += [_collectives(found), _roofline(found)]
    if changes := advice(found):
        parts.append("It does not fit. What helps:\n" + "\n".join(f"  {x}" for x in changes))
    return "\n\n".join(parts)


def row(name: str, found: Findings) -> dict[str, Any]:
    """One line of the table; memory in GiB and traffic in GB of one chip, FLOPs of all.

    Of conditionals the branch counts that costs least, in columns "most ..." the other.
    """
    config, seconds, most = found.config, found.seconds, found.most_seconds
    compiled = isinstance(found.program, Program)
    conditional = compiled and found.conditionals
    memory = found.program.memory if compiled else None  # pyright: ignore
    sent = by_kind(found.collectives)
    return {
        "config": name,
        "slice": found.topology.name,
        "mesh": _sizes(found),
        "T": config.data.sequence_length,
        "batch": config.data.batch_size,
        "parts": config.train.accumulate,
        "remat": config.model.remat,
        "dtype": config.model.dtype,
        "parameters": found.parameters,
        "parameters GiB": found.parameter_bytes / GIB,
        "optimizer GiB": found.optimizer_bytes / GIB,
        "batch GiB": found.batch_bytes / GIB,
        "temporaries GiB": memory.temporaries / GIB if memory else None,
        "needed GiB": found.needed / GIB,
        "HBM GiB": found.topology.chip.memory / GIB,
        "fits": "yes" if found.fits else "no",
        "formula PFLOP": found.formula_flops / 1e15,
        "counted PFLOP": found.counted / 1e15,
        "executed PFLOP": found.executed / 1e15,
        **{f"{kind} runs": sent[kind][0] for kind in sent},
        **{f"{kind} GB": sent[kind][1] / 1e9 for kind in sent},
        "sent GB": sum(x[2] for x in sent.values()) / 1e9 if compiled else None,
        "HBM traffic GB": found.traffic / 1e9 if compiled else None,
        **{f"{term} s": seconds[term] if compiled else None for term in seconds},
        "compile s": round(found.program.seconds) if compiled else None,  # pyright: ignore
        "usable GiB": found.topology.chip.usable / GIB,
        "conditionals": found.conditionals if compiled else None,
        "most memory s": most["memory"] if conditional else None,
        "most links s": most["links"] if conditional else None,
    }


def append(path: Path, new: dict[str, Any], command: str, facts: Sequence[str]) -> None:
    """Adds a row to a table, which is made if it is not there; its command joins the header."""
    rows, header = [], list(facts)
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        header = [line.removeprefix("# ") for line in lines if line.startswith("#")]
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    write_csv(path, [*rows, new], [*header, f"command: {command}"])


def _sizes(found: Findings) -> str:
    return " ".join(f"{axis}={size}" for axis, size in found.mesh.items() if size > 1) or "1"


def _what(found: Findings) -> str:
    config, model = found.config, found.config.model
    rows, length = config.data.batch_size, config.data.sequence_length
    ops = "; ".join(
        f"{op} by {' '.join(sorted(names))}" for op, names in found.implementations.items()
    )
    lines = [
        f"{found.parameters:,} parameters on {found.topology.name}, {found.topology.chips} chips; "
        f"mesh {_sizes(found)}",
        f"batch {rows} x {length:,} = {rows * length:,} tokens a step, accumulate "
        f"{config.train.accumulate}; {model.dtype} activations, {model.param_dtype} parameters, "
        f"remat {model.remat}",
    ]
    return "\n".join([*lines, ops] if ops else lines)


def _memory(found: Findings) -> str:
    lines = [
        ("parameters", found.parameter_bytes, ""),
        ("optimizer state", found.optimizer_bytes, ""),
        ("batch", found.batch_bytes, ""),
    ]
    if isinstance(found.program, Program):
        memory = found.program.memory
        known = sum(size for _, size, _ in lines)
        lines += [
            ("padding of these", memory.arguments - known, ""),
            ("temporaries", memory.temporaries, "activations, gradients, gathered parameters"),
            ("new outputs", memory.outputs - memory.aliased, "the rest takes the state's place"),
            ("program", memory.code, ""),
        ]
    verdict = "fits" if found.fits else "DOES NOT FIT"
    chip = found.topology.chip
    pool = ""
    if chip.usable < chip.memory:
        share = chip.usable / chip.memory
        pool = (
            f" ({share:.0%} of {chip.memory / GIB:.1f}: JAX's default pool; "
            "XLA_CLIENT_MEM_FRACTION sets another)"
        )
    lines.append(("needed", found.needed, f"of {chip.usable / GIB:.1f}: {verdict}{pool}"))
    body = [f"  {name:18}{size / GIB:9.3f}  {note}".rstrip() for name, size, note in lines]
    title = "Memory of one chip, GiB"
    if not isinstance(found.program, Program):
        title += f" (the compiler gave up: {found.program.message})"
    return "\n".join([title, *body])


def _flops(found: Findings) -> str:
    counted, executed, formula = found.counted, found.executed, found.formula_flops
    lines = [
        "FLOPs of a step, all chips (products; a multiply-add is two)",
        f"  formula           {formula:.4g}  three times the model's forward_flops",
        f"  counted           {counted:.4g}  {counted / formula:.1%} of it, no recomputation",
        f"  executed          {executed:.4g}  {executed - counted:.3g} of them computed again",
    ]
    if found.model_flops.kernels:
        kernels = found.executed_flops.kernels
        each = ", ".join(f"{name} {flops:.3g}" for name, flops in kernels.items())
        lines.append(f"  of these in kernels: {each}")
        lines.append("  (screening: by formula for the initial windows; others: grid times body)")
        if found.mesh["seq"] > 1:
            lines.append(
                "  (screening of divided sequences: counted as on the mean device of seq, executed "
                "as on the last)"
            )
    for name, times in found.model_flops.uncounted.items():
        lines.append(f"  not counted, taken from the formula: {name}, run {times:,.0f} times")
    return "\n".join(lines)


def _collectives(found: Findings) -> str:
    rows = [
        {"collective": kind, "runs": runs, "GB": size / 1e9, "GB sent": sent / 1e9}
        for kind, (runs, size, sent) in by_kind(found.collectives).items()
    ]
    if not rows:
        return "No collectives."
    largest = sorted(found.collectives, key=lambda x: -x.times * x.sent)[:5]
    lines = [
        f"  {x.times:6,} x {x.bytes / 1e6:9.2f} MB  {x.kind} {x.shape} of {x.chips} chips: "
        f"{'/'.join(x.source.split('/')[-3:])}"
        for x in largest
    ]
    loops = len(found.unknown_loops)
    notes = [f"Bodies of {loops} loop(s) of run-time length are taken once."] if loops else []
    title = "Collectives of one chip in a step (loops multiplied out; sent: on a ring)"
    return "\n".join([title, markdown(rows), "The largest:", *lines, *notes])


def _roofline(found: Findings) -> str:
    chip, seconds = found.topology.chip, found.seconds
    longest, total = max(seconds.values()), sum(seconds.values())
    tokens = found.config.data.batch_size * found.config.data.sequence_length
    peak = found.topology.chips * chip.flops
    peaks = {
        "compute": f"{chip.flops / 1e12:.0f} TFLOP/s bfloat16",
        "memory": f"{chip.bandwidth / 1e9:.0f} GB/s; {found.traffic / 1e9:,.0f} GB of operands and "
        "results of the optimized program",
        "links": f"{chip.links / 1e9:.0f} GB/s, all links of a chip at once",
    }
    lines = [f"  {name:12}{seconds[name]:9.3f}  at {peaks[name]}" for name in seconds]
    for name, time in (("all at once", longest), ("in turn", total)):
        share = found.formula_flops / time / peak
        lines.append(
            f"  {name:12}{time:9.3f}  {tokens / time:,.0f} tokens/s, {share:.0%} of peak by the "
            "formula"
        )
    if found.topology.nodes > 1:
        lines.append(
            f"  Links between the {found.topology.nodes} nodes: {chip.network / 1e9:.0f} GB/s of "
            "each GPU (its own network adapter); a node takes in what it needs of others once"
        )
    if found.conditionals:
        most = found.most_seconds
        sent = sum(x.times * x.sent for x in found.most_collectives) / 1e9
        lines.append(
            f"  Of {found.conditionals} conditional(s) the branch counts that sends least, for "
            "memory the one that moves least;\n"
            f"  with those that cost most: memory {most['memory']:.3f}, links {most['links']:.3f} "
            f"({sent:,.1f} GB sent)"
        )
    title = "Least time of a step, s, at the published peaks (utilisation 100 %: not a forecast)"
    return "\n".join([title, *lines])
