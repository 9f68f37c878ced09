"""Chooses the block sizes of the screening kernels and writes a chip's frozen table.

    python -m experiments.bench.tune                       measures, on this machine's TPU or GPU
    python -m experiments.bench.tune --schedules-of v5e    by compiled schedule, without a TPU
    python -m experiments.bench.tune --output table.json --length 100    on a CPU, interpreted:
                                                           checks this program

Candidates are those of `experiments.bench.candidates`, with which no kernel spills a register. Each
is compared with the first, values and all gradients, and one that differs ends the run. Kernels are
chosen one after the other, the others' blocks fixed; a configuration without candidates is left
out, and so refused. The table goes where `pallas_kernels.screening.block_tables` reads it, entries
of other configurations kept; what a CPU's interpreter takes says nothing, and goes elsewhere.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.kernels import forward_and_backward, make_inputs, seconds
from experiments.bench.report import machine_facts
from multiscreen_jax.train import options
from pallas_kernels import interpret_kernels
from pallas_kernels.common import dispatch
from pallas_kernels.common.tpu import tpu_chip
from pallas_kernels.screening import block_tables
from pallas_kernels.screening.block_sizes import TpuBlock
from pallas_kernels.screening.pallas_gpu import gpu_chip, screening_pallas_gpu
from pallas_kernels.screening.pallas_tpu import screening_pallas_tpu

KERNELS = ("forward", "queries", "keys")
Candidates = dict[str, list[tuple[float | None, dict[str, Any]]]]


def candidates_of(chip: str, dtype: str, key_dim: int, value_dim: int) -> Candidates:
    """From a process of its own: the compilers there must not meet the device here."""
    arguments = ["experiments.bench.candidates", chip, dtype, str(key_dim), str(value_dim)]
    run = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr[-2000:])
    return json.loads(run.stdout.split("candidates", 1)[1])


def interpreted_candidates() -> Candidates:
    """Enough to go through everything."""
    block = TpuBlock(128, 128, 128)._asdict()
    every: Candidates = {kernel: [(None, block)] for kernel in KERNELS}
    every["forward"].append((None, {**block, "strip": 64}))
    return every


def best_by_schedule(candidates: Candidates) -> dict[str, Any]:
    return {kernel: found[0][1] for kernel, found in candidates.items()}


def best_by_time(
    op: Callable, chip: str, name: str, candidates: Candidates, args: list[jax.Array], repeats: int
) -> dict[str, Any]:
    """Measures forward and backward with every candidate, the other kernels as chosen so far."""
    chosen = best_by_schedule(candidates)
    expected = None
    for kernel, found in candidates.items():
        if len(found) == 1:
            continue
        times = []
        for _, block in found:
            block_tables.table(chip)[name] = {**chosen, kernel: block}
            run = forward_and_backward(lambda *x: op(*x))  # a new function, so it is traced anew
            result = run(*args)
            expected = result if expected is None else expected
            check_parity(result, expected, f"{name}, {kernel} {block}")
            times.append(statistics.median(seconds(run, args) for _ in range(repeats)))
        chosen[kernel] = found[int(np.argmin(times))][1]
    return chosen


def check_parity(result, expected, what: str) -> None:
    tolerance = 2**-6 if result[0].dtype == jnp.bfloat16 else 1e-4
    for a, b in zip(result, expected, strict=True):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        error = np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)
        if not error <= tolerance:
            raise SystemExit(f"{what}: differs by {error:.1e} from other block sizes")


def main(
    schedules_of: str | None = None,
    dtypes: tuple[Literal["bfloat16", "float32"], ...] = ("bfloat16", "float32"),
    key_dims: tuple[int, ...] = (8, 16, 32, 64, 128),
    value_dims: tuple[int, ...] = (32, 64, 128),
    length: int = 8192,
    repeats: int = 20,
    output: Path | None = None,
) -> None:
    """Choose and write.

    Args:
        schedules_of: choose for this TPU by its compiler's schedules: v4, v5e, v5p, v6e, 7x.
        dtypes, key_dims, value_dims: of the inputs.
        length: tokens, at batch 1, 16 heads and initial windows, of which the last is infinite.
        repeats: timed runs of each candidate; the median counts.
        output: the table, if not the one that kernels read.
    """
    platform = dispatch.platform()
    if schedules_of is None and platform == "cpu" and output is None:
        raise SystemExit("on a CPU kernels are interpreted: give an --output that is not shipped")
    if output is not None and output.resolve().parent == block_tables.DIRECTORY:
        raise SystemExit("--output is for tables that are not shipped")
    chip = schedules_of or (gpu_chip() if platform == "gpu" else tpu_chip())
    op = screening_pallas_gpu if platform == "gpu" else screening_pallas_tpu
    interpreted = schedules_of is None and platform == "cpu"
    heads = 2 if interpreted else 16
    windows = np.exp(np.linspace(0, np.log(256), heads)) + 1
    windows[-1] = np.inf
    how = "compiled schedules" if schedules_of else "interpretation" if interpreted else "time"
    source = "; ".join((f"chosen by {how}", *machine_facts()))
    path = output or block_tables.path_of(chip)
    chosen = dict(block_tables.table(chip))
    for dtype in dtypes:
        for key_dim in key_dims:
            for value_dim in value_dims:
                shape = (dtype, key_dim, value_dim)
                name = block_tables.configuration(*shape)
                chosen.pop(name, None)
                candidates = (
                    interpreted_candidates() if interpreted else candidates_of(chip, *shape)
                )
                if not all(candidates.values()):
                    print(f"{name}: refused, no block without spills", flush=True)
                    continue
                if schedules_of is not None:
                    chosen[name] = best_by_schedule(candidates)
                else:
                    args = make_inputs(length, heads, windows, dtype, key_dim, value_dim)
                    with interpret_kernels(interpreted):
                        best = best_by_time(op, chip, name, candidates, args, repeats)
                    chosen[name] = best
                print(f"{name}: {chosen[name]}", flush=True)
                block_tables.write(path, source, chosen)


if __name__ == "__main__":
    options.call(main)
