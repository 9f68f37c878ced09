"""The screening kernels on a GPU: are they right, and how fast?

    python -m experiments.bench.gpu_run
    JAX_PLATFORMS=cpu python -m experiments.bench.gpu_run --tiny    interpreted: checks this program

First values and all gradients of "pallas_gpu" are compared with those of `--against`, in float32
at the highest precision from the same inputs, and decoding with its "chunked" form: ||a - b|| /
||b||. Then times: the kernels at several sizes, softmax attention by cuDNN (causal, heads of the
value dimension) as a yardstick, decoding, the other forms of screening in XLA, and a dense form in
PyTorch.

All programs of a part are compiled before its first is run, several at a time. A time is the median
of batches of calls: the calls of a batch are enqueued one after another and waited for once, so
that their launches overlap. Inputs stay in memory, and small ones in the card's cache.

TFLOP/s count what the kernels compute: 2 (K + V) FLOPs for each pair of a visited tile forward and
2 (4 K + 3 V) backward. Softmax attention is counted with pairs at i >= j only, 4 D forward and 10 D
backward. A float32 product counts once, though the tensor cores take three passes for it.
"""

import contextlib
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import report
from experiments.bench.gpu_programs import (
    CHECKED,
    DENSE,
    TIMED,
    Case,
    Program,
    Table,
    add_time,
    compile_all,
    documents_of,
    in_short,
    inputs_of,
    make_windows,
    measure,
    unit,
)
from experiments.bench.kernels import forward, forward_and_backward
from multiscreen_jax.train import options
from pallas_kernels import interpret_kernels
from pallas_kernels.screening import screening, screening_decode
from pallas_kernels.screening.pallas_gpu import count_visited_pairs, device_block_sizes
from pallas_kernels.screening.summaries import summarize

GRADIENTS = ("h", "dq", "dk", "dv", "dwindow", "dwidth")
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
PASSES = {"forward": forward, "forward + backward": forward_and_backward}


# -- right? ----------------------------------------------------------------------------------------


def relative_error(a: Any, b: Any) -> float:
    """||a - b|| / ||b||, or ||a|| if b is zero; NaN if either holds one."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1))


def compare(pairs: Sequence[tuple[Program, Program]], results: Sequence[str], table: Table) -> None:
    """Errors of each first program against its second; the first runs twice, to the same bits."""
    compiled = compile_all([program for pair in pairs for program in pair])
    for (program, other), one, two in zip(pairs, compiled[::2], compiled[1::2], strict=True):
        row = program.row
        if one is None or two is None:
            row["verdict"] = "failed"
            row["note"] = row.get("note") or other.row.get("note")
        else:
            got, again = ([np.asarray(x) for x in one(*program.arguments)] for _ in range(2))
            want = two(*other.arguments)
            errors = [relative_error(a, b) for a, b in zip(got, want, strict=True)]
            same = all(np.array_equal(a, b) for a, b in zip(got, again, strict=True))
            right = same and all(error <= TOLERANCES[row["dtype"]] for error in errors)
            row |= dict(zip(results, errors, strict=True))
            row |= {"repeats": same, "verdict": "right" if right else "WRONG"}
        table.add(row)
    table.write()


def in_float32(arguments: Sequence[Any]) -> list[Any]:
    def exact(x):
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(np.asarray(x, np.float32)) if floating else x

    return jax.tree.map(exact, list(arguments))


def check_screening(cases: Sequence[Case], against: str, seed: int, table: Table) -> None:
    pairs = []
    for case in cases:
        documents = documents_of(case)
        arguments = inputs_of(case, seed)

        def program(name, arguments, documents=documents, case=case):
            op = partial(screening, segment_ids=documents, implementation=name, precision="highest")
            row = {"what": "screening", **case.row(), "documents": documents is not None}
            return Program(forward_and_backward(op), arguments, row)

        pairs.append((program("pallas_gpu", arguments), program(against, in_float32(arguments))))
    compare(pairs, GRADIENTS, table)


def check_special_values(table: Table) -> None:
    """A NaN key reaches those queries that see it, and nothing comes of rejected keys."""
    run = jax.jit(partial(screening, implementation="pallas_gpu"))
    for dtype in TOLERANCES:
        q, k, v, window, width, _ = inputs_of(Case(dtype, 1, 4, 300, 16, 64, "infinite"))
        h = np.asarray(run(q, k.at[:, 100].set(jnp.nan), v, window, width), np.float32)
        seen, unseen = np.isnan(h[:, 100:]).all(), np.isfinite(h[:, :100]).all()
        rejected = not np.asarray(run(q, k * 0, v, window, width), np.float32).any()
        for what, right in (("NaN key", seen and unseen), ("rejected keys", rejected)):
            table.add({"what": what, "dtype": dtype, "verdict": "right" if right else "WRONG"})
    arguments = decode_inputs(np.array([17.0, np.inf]), 300, "float32")
    arguments[1] = arguments[1].at[:, 100:200].set(jnp.nan)  # in the second ring
    (h,) = decode_program("pallas_gpu", arguments, False, {}).function(None, *arguments)
    right = np.isnan(h[:, :, 1]).all() and np.isfinite(h[:, :, 0]).all()
    table.add({"what": "decode, NaN keys", "verdict": "right" if right else "WRONG"})
    table.write()


# -- decoding --------------------------------------------------------------------------------------


def decode_inputs(windows: np.ndarray, context: int, dtype: str, batch=1, queries=1, seed=0):
    """Arguments of `screening_decode` (K=16, V=64): full rings, each query near one of its keys."""
    size = np.minimum(np.ceil(windows), context).astype(np.int32)
    offset = (5 + np.cumsum(size) - size).astype(np.int32)
    slots = -(-int(offset[-1] + size[-1]) // 256) * 256
    length = context - 37 * np.arange(batch)
    positions = length[:, None] + np.arange(queries)
    rng = np.random.default_rng(seed)
    near = offset + rng.integers(size, size=(batch, queries, len(windows)))
    keys = unit(rng.standard_normal((batch, slots, 16), np.float32))
    values = unit(rng.standard_normal((batch, slots, 64), np.float32))
    q = keys[np.arange(batch)[:, None, None], near]
    q = unit(q + 0.02 * rng.standard_normal(q.shape, np.float32))
    widths = np.linspace(0.3, 0.7, len(windows), dtype=np.float32)
    arrays = (
        *(x.astype(jnp.dtype(dtype)) for x in (q, keys, values)),
        *(x.astype(np.int32) for x in (positions, length, length // 9, offset, size)),
        windows.astype(np.float32),
        widths,
    )
    return [jnp.asarray(x) for x in arrays]


def decode_program(name: str, arguments: Sequence[Any], summarized: bool, row: dict[str, Any]):
    """Summaries are of the keys as they are stored."""
    op = partial(screening_decode, implementation=name, precision="highest")
    summaries = jax.jit(summarize)(arguments[1]) if summarized else None
    function = jax.jit(lambda summaries, *x: (op(*x, summaries=summaries),))
    row = {**row, "summaries": "yes" if summarized else "no"}
    return Program(function, (summaries, *arguments), row)


def check_decode(contexts: Sequence[int], seed: int, table: Table) -> None:
    pairs = []
    for context in contexts:
        for dtype in TOLERANCES:
            for queries, summarized in ((1, False), (1, True), (3, True)):
                windows = np.array([2.5, 33.0, 300.2, context / 2, np.inf])
                arguments = decode_inputs(windows, context, dtype, 2, queries, seed)
                row = {"what": "decode", "dtype": dtype, "B": 2, "T": context, "queries": queries}
                kernel = decode_program("pallas_gpu", arguments, summarized, row)
                plain = decode_program("chunked", in_float32(arguments), False, row)
                pairs.append((kernel, plain))
    compare(pairs, ("h",), table)


def measure_decode(context: int, heads: int, table: Table, seconds: float) -> None:
    programs = []
    for windows in ("infinite", "initial"):
        args = decode_inputs(make_windows(windows, heads, context), context, "bfloat16")
        row = {"dtype": "bfloat16", "B": 1, "H": heads, "T": context, "K": 16, "V": 64}
        row |= {"windows": windows, "pass": "one token"}
        for name, summarized in (("pallas_gpu", False), ("pallas_gpu", True), ("chunked", False)):
            what = f"decode, {name}" + (", summaries" if summarized else "")
            programs.append(decode_program(name, args, summarized, {"what": what, **row}))
    measure(programs, table, seconds)


# -- fast? -----------------------------------------------------------------------------------------


@cache
def kernel_flops(case: Case) -> dict[str, float]:
    """FLOPs of the kernels, by pass."""
    key_dim, value_dim = max(case.key_dim, 16), case.value_dim
    sizes = device_block_sizes(case.dtype, key_dim, value_dim)
    costs = {
        "forward": (key_dim + value_dim, "queries"),
        "queries": (2 * key_dim + value_dim, "queries"),
        "keys": (2 * key_dim + 2 * value_dim, "keys"),
    }
    flops = {}
    with jax.default_device(jax.devices("cpu")[0]):
        windows = jnp.asarray(make_windows(case.windows, case.heads, case.length))
        for kernel, (cost, over) in costs.items():
            pairs = count_visited_pairs(case.length, windows, getattr(sizes, kernel), over)
            flops[kernel] = 2.0 * case.batch * cost * pairs
    return {"forward": flops["forward"], "forward + backward": sum(flops.values())}


def screening_programs(case: Case, name: str) -> list[Program]:
    arguments = inputs_of(case)
    op = partial(screening, implementation=name)
    counted = kernel_flops(case) if name == "pallas_gpu" else {}
    return [
        Program(
            make(op),
            arguments,
            {"what": f"screening, {name}", **case.row(), "pass": title},
            counted.get(title),
        )
        for title, make in PASSES.items()
    ]


def softmax_programs(case: Case) -> list[Program]:
    """Softmax attention with as many heads, all of the value dimension."""
    *_, v, _, _, cotangent = inputs_of(case)
    op = partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    pairs = case.batch * case.heads * case.length * (case.length + 1) / 2
    sizes = case.row() | {"K": case.value_dim, "windows": "", "width": ""}
    return [
        Program(
            make(op),
            (v, v, v, cotangent),
            {"what": "softmax attention, cuDNN", **sizes, "pass": title},
            cost * case.value_dim * pairs,
        )
        for (title, make), cost in zip(PASSES.items(), (4, 14), strict=True)
    ]


def softmax_cases(cases: Sequence[Case]) -> list[Case]:
    """One of each shape that has bfloat16, which is all that cuDNN takes."""
    shapes = {}
    for case in cases:
        if case.dtype == "bfloat16":
            shapes.setdefault((case.batch, case.heads, case.length, case.value_dim), case)
    return list(shapes.values())


def measure_torch(case: Case, table: Table, seconds: float) -> None:
    """Screening as PyTorch implementations do it: all T x T pairs of a head, in memory."""
    try:
        import torch
    except ImportError as error:
        table.add({"what": "screening, PyTorch", "note": in_short(error)})
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def moved(x):
        x = torch.from_numpy(np.array(x.astype(jnp.float32))).to(device)
        return (x.to(getattr(torch, case.dtype)) if x.ndim > 1 else x).contiguous()

    arrays = [x.swapaxes(1, 2) if x.ndim > 1 else x for x in inputs_of(case)]
    *inputs, cotangent = (moved(x) for x in arrays)

    def dense(q, k, v, window, width):
        alpha = (1 - (1 - q @ k.mT) / width[:, None, None]).relu().square()
        position = torch.arange(q.shape[-2], device=device)
        distance = position[:, None] - position
        window = window[:, None, None]
        mask = ((torch.pi * distance / window).cos() + 1) / 2
        mask = torch.where((distance >= 0) & (distance < window), mask, 0)
        return (alpha * mask).to(v.dtype) @ v

    def runs(op):
        def forward():
            with torch.no_grad():
                return op(*inputs)

        leaves = [x.detach().requires_grad_() for x in inputs]
        return forward, lambda: torch.autograd.grad(op(*leaves), leaves, cotangent)

    def wait(_):
        if device == "cuda":
            torch.cuda.synchronize()

    for name, op in (("eager", dense), ("torch.compile", torch.compile(dense))):
        for title, run in zip(PASSES, runs(op), strict=True):
            row = {"what": f"screening, PyTorch dense, {name}", **case.row(), "pass": title}
            add_time(row, run, wait, seconds)
            table.add(row)
    table.write()


# -- everything ------------------------------------------------------------------------------------


def device_facts() -> list[str]:
    kind = jax.devices()[0].device_kind
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        kind = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    return [f"device, driver: {kind}"]


def shortened(cases: Sequence[Case], length: int = 70) -> list[Case]:
    return [replace(case, length=length, heads=2) for case in cases]


def needs_gpu(tiny: bool, output: Path) -> None:
    """Ends with one line where the tables of a real GPU would be overwritten without one."""
    if jax.default_backend() == "gpu":
        return
    if not tiny:
        raise SystemExit("error: there is no GPU; --tiny --output PATH interprets the kernels")
    if output.parent.resolve() == report.RESULTS.resolve():
        raise SystemExit(f"error: {output} is a GPU's table; give --tiny another --output")


def main(
    output: Path = report.RESULTS / "gpu_run.csv",
    parts: tuple[str, ...] = ("right", "kernels", "softmax", "decode", "dense", "torch"),
    against: Literal["reference", "chunked"] = "reference",
    seconds: float = 0.6,
    tiny: bool = False,
) -> None:
    """Check, then time.

    Args:
        output: the table of times; that of errors goes beside it, as NAME_errors.csv.
        parts: which to run, in this order.
        against: what values and gradients are compared with; "chunked" takes a minute to compile.
        seconds: for one time, about.
        tiny: small sizes, and kernels interpreted where there is no GPU.
    """
    needs_gpu(tiny, output)
    facts = [f"command: {report.command()}", *device_facts(), *report.machine_facts()]
    errors = Table(output.with_stem(f"{output.stem}_errors"), facts)
    times = Table(output, facts)
    checked, timed, dense = (
        shortened(cases)[:2] if tiny else cases for cases in (CHECKED, TIMED, DENSE)
    )
    context = 500 if tiny else 2**17
    seed = time.time_ns() % 2**31

    def time_screening(cases, name):
        programs = [program for case in cases for program in screening_programs(case, name)]
        measure(programs, times, seconds)

    def check():
        check_screening(checked, against, seed, errors)
        check_decode((context // 16 + 1,), seed, errors)
        check_special_values(errors)

    def time_others():
        for name in ("reference", "chunked"):
            time_screening(dense, name)

    def time_softmax():
        programs = [program for case in softmax_cases(timed) for program in softmax_programs(case)]
        measure(programs, times, seconds)

    actions = {
        "right": check,
        "kernels": lambda: time_screening(timed, "pallas_gpu"),
        "softmax": time_softmax,
        "decode": lambda: measure_decode(context, 4 if tiny else 16, times, seconds),
        "dense": time_others,
        "torch": lambda: measure_torch(dense[0], times, seconds),
    }
    start = time.perf_counter()
    with interpret_kernels(tiny and jax.default_backend() == "cpu"):
        for part in parts:
            print(f"-- {part}, after {time.perf_counter() - start:.0f} s", flush=True)
            actions[part]()
    print("\n" + report.markdown(times.rows) if times.rows else "")
    wrong = [row for row in errors.rows if row["verdict"] != "right"]
    print(f"{len(errors.rows) - len(wrong)} checks are right, {len(wrong)} are not")
    print(f"written to {output}, {time.perf_counter() - start:.0f} s")
    if wrong:
        raise SystemExit("\n".join(map(str, wrong)))


if __name__ == "__main__":
    options.call(main)
