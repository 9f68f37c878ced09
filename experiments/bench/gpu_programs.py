"""Sizes of the screening op on a GPU, compiled programs, and how they are timed; for `gpu_run`."""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import report

COMPILERS = 16  # programs compiled at a time


@dataclass(frozen=True)
class Case:
    """One size of the op; windows as `make_windows` names them."""

    dtype: str
    batch: int
    heads: int
    length: int
    key_dim: int
    value_dim: int
    windows: str
    width: float = 0.5
    documents: bool = False

    def row(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "B": self.batch,
            "H": self.heads,
            "T": self.length,
            "K": self.key_dim,
            "V": self.value_dim,
            "windows": self.windows,
            "width": self.width,
        }


# T is no multiple of a block in most, and infinite windows are among the mixed ones.
CHECKED = (
    Case("float32", 2, 4, 700, 16, 64, "mixed"),
    Case("bfloat16", 2, 4, 700, 16, 64, "mixed"),
    Case("float32", 2, 4, 700, 16, 64, "mixed", documents=True),
    Case("bfloat16", 2, 4, 1001, 64, 64, "mixed", documents=True),
    Case("float32", 1, 4, 1001, 64, 64, "mixed"),
    Case("bfloat16", 2, 4, 700, 128, 128, "mixed"),
    Case("float32", 2, 4, 700, 128, 128, "mixed", documents=True),
    Case("bfloat16", 1, 3, 512, 8, 32, "mixed", documents=True),
    Case("float32", 1, 3, 512, 32, 32, "infinite"),
    Case("bfloat16", 1, 2, 6000, 16, 64, "infinite"),
)
TIMED = (
    Case("bfloat16", 1, 16, 16384, 16, 64, "infinite"),
    Case("bfloat16", 1, 16, 16384, 16, 64, "16..T"),
    Case("bfloat16", 1, 16, 65536, 16, 64, "infinite"),
    Case("bfloat16", 1, 16, 65536, 16, 64, "16..T"),
    Case("bfloat16", 1, 16, 65536, 16, 64, "initial"),
    Case("bfloat16", 4, 16, 4096, 16, 64, "infinite"),
    Case("bfloat16", 1, 16, 4096, 16, 64, "infinite"),
    Case("bfloat16", 1, 16, 4096, 16, 64, "initial"),
    Case("bfloat16", 1, 32, 16384, 64, 64, "infinite"),
    Case("bfloat16", 1, 32, 16384, 64, 64, "16..T"),
    Case("float32", 1, 16, 16384, 16, 64, "infinite"),
    Case("float32", 1, 16, 16384, 64, 64, "infinite"),
    Case("bfloat16", 1, 16, 65536, 16, 64, "infinite", width=0.1),
)
DENSE = (
    Case("bfloat16", 1, 16, 4096, 16, 64, "infinite"),
    Case("bfloat16", 1, 16, 4096, 16, 64, "initial"),
)


def make_windows(name: str, heads: int, length: int) -> np.ndarray:
    """Windows of all heads.

    Args:
        name: "infinite"; "initial", a new model's, 2 to 257; "16..T", log-spaced; or "mixed".
    """
    if name == "infinite":
        return np.full(heads, np.inf)
    if name == "initial":
        return np.exp(np.linspace(0, np.log(256), heads)) + 1
    if name == "16..T":
        return np.geomspace(16, length, heads)
    return np.array([2.5, 33.0, 300.2, np.inf])[-heads:]


def inputs_of(case: Case, seed: int = 0) -> list[jax.Array]:
    """q, k, v, window, width and a cotangent; half of the keys are near the query before them."""
    windows = make_windows(case.windows, case.heads, case.length)
    # In checks every head has a width of its own.
    width = np.linspace(0.3, 0.9, case.heads) if case.windows == "mixed" else case.width
    *arrays, cotangent = _arrays(replace(case, windows="", width=0, documents=False), seed)
    per_head = (np.broadcast_to(np.float32(x), windows.shape) for x in (windows, width))
    return [*arrays, *map(jnp.asarray, per_head), cotangent]


@cache
def _arrays(case, seed):
    """Made by NumPy: a GPU's compiler takes long for many small programs."""
    rng = np.random.default_rng(seed)
    shape = (case.batch, case.length, case.heads)

    def normal(dim):
        return rng.standard_normal((*shape, dim), np.float32)

    q = unit(normal(case.key_dim))
    noise = np.where(rng.random(shape) < 0.5, 0.1, 10).astype(np.float32)[..., None]
    k = unit(np.roll(q, 1, axis=1) + noise * normal(case.key_dim))
    arrays = q, k, unit(normal(case.value_dim)), normal(case.value_dim)
    return [jnp.asarray(x.astype(jnp.dtype(case.dtype))) for x in arrays]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def documents_of(case: Case) -> jax.Array | None:
    """Documents of random lengths, the last of them padding."""
    if not case.documents:
        return None
    rng = np.random.default_rng(case.length)
    starts = np.sort(rng.integers(1, case.length, (case.batch, 5)))
    numbers = (np.arange(case.length) >= starts[..., None]).sum(1) + 1
    return jnp.asarray(np.where(numbers == 6, 0, numbers), jnp.int32)


# -- compiling and timing --------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """A jitted function with its arguments, and what a table says of it."""

    function: Callable
    arguments: Sequence[Any]
    row: dict[str, Any]
    flops: float | None = None


def compile_all(programs: Sequence[Program]) -> list[Callable | None]:
    """All compiled, several at a time; None, with a note in its row, where that failed."""
    with ThreadPoolExecutor(COMPILERS) as pool:
        started = [_start_compiling(pool, program) for program in programs]
    compiled = []
    for program, future in zip(programs, started, strict=True):
        error = future.exception()
        if error is not None:
            program.row["note"] = in_short(error)
        compiled.append(None if error is not None else future.result())
    return compiled


def _start_compiling(pool, program) -> Future:
    try:
        return pool.submit(program.function.lower(*program.arguments).compile)
    except Exception as error:
        failed = Future()
        failed.set_exception(error)
        return failed


def in_short(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def median_ms(run: Callable, wait: Callable, seconds: float) -> tuple[float, str]:
    """Median milliseconds of a call, and "batches x calls", in about so many seconds."""

    def batch(calls):
        start = time.perf_counter()
        for _ in range(calls):
            result = run()
        wait(result)
        return (time.perf_counter() - start) / calls

    batch(1)
    once = batch(1)
    calls = max(1, min(100, round(0.02 / once)))
    batches = max(3, min(30, round(seconds / (once * calls))))
    median = statistics.median(batch(calls) for _ in range(batches))
    return 1e3 * median, f"{batches} x {calls}"


class Table:
    """Rows of a CSV, printed one by one."""

    def __init__(self, output: Path, notes: Sequence[str]):
        self.output, self.notes, self.rows = output, notes, []

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        cells = (f"{x:.4g}" if isinstance(x, float) else str(x) for x in row.values())
        print("  ".join(cells), flush=True)

    def write(self) -> None:
        report.write_csv(self.output, self.rows, self.notes)


def add_time(row: dict[str, Any], run: Callable, wait: Callable, seconds: float, flops=None):
    """Times a call and completes its row; what fails gets a note."""
    try:
        row["median_ms"], row["runs"] = median_ms(run, wait, seconds)
        if flops is not None:
            row["TFLOP/s"] = flops / row["median_ms"] / 1e9
    except Exception as error:
        row["note"] = in_short(error)


def measure(programs: Sequence[Program], table: Table, seconds: float) -> None:
    """A row for each."""
    for program, compiled in zip(programs, compile_all(programs), strict=True):
        if compiled is not None:
            run = partial(compiled, *program.arguments)
            add_time(program.row, run, jax.block_until_ready, seconds, program.flops)
        table.add(program.row)
    table.write()
