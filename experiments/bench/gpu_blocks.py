"""Times of the three GPU kernels, each alone, for several block sizes.

    python -m experiments.bench.gpu_blocks

Candidates spill no register on sm_90, with and without documents; the first of each kernel is the
one that `gpu_block_sizes` has for every GPU. Results must agree with the first's. Infinite windows,
16 heads, no documents. `experiments.bench.tune` writes a table for a whole chip instead, from
forward and backward together, and takes much longer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.bench import report
from experiments.bench.gpu_programs import Case, Program, Table, compile_all, inputs_of, median_ms
from experiments.bench.gpu_run import TOLERANCES, device_facts, needs_gpu, relative_error
from multiscreen_jax.train import options
from pallas_kernels import interpret_kernels
from pallas_kernels.screening import pallas_gpu
from pallas_kernels.screening.gpu_block_sizes import Block

# queries, keys, warps, stages
CANDIDATES = {
    ("bfloat16", 16): {
        "forward": [(64, 32, 4, 2), (64, 64, 4, 2), (128, 64, 4, 2), (64, 128, 4, 2)],
        "queries": [(64, 32, 4, 2), (64, 64, 4, 2)],
        "keys": [(64, 32, 4, 2), (64, 64, 4, 2)],
    },
    ("bfloat16", 64): {
        "forward": [(64, 32, 4, 2), (64, 64, 4, 2), (128, 64, 8, 2), (64, 64, 8, 2)],
        "queries": [(64, 32, 4, 2), (64, 64, 4, 2), (128, 64, 8, 2), (64, 64, 8, 2)],
        "keys": [(64, 32, 4, 2), (32, 64, 4, 2), (64, 128, 8, 2), (64, 64, 8, 2), (32, 128, 8, 2)],
    },
    ("float32", 16): {
        "forward": [
            (32, 32, 4, 2),
            (64, 32, 4, 2),
            (64, 64, 4, 1),
            (64, 16, 4, 1),
            (128, 32, 8, 1),
        ],
        "queries": [(32, 16, 4, 1), (64, 16, 4, 1), (64, 32, 4, 1), (128, 32, 8, 1)],
        "keys": [(32, 32, 4, 2), (16, 128, 8, 1)],
    },
}
LENGTHS = {"bfloat16": 16384, "float32": 8192}


def kernel_alone(kernel: str, block: Block) -> Callable:
    """The jitted kernel, from q, k, v, window, width and a cotangent to arrays of its gradients."""

    def run(q, k, v, window, width, dh):
        function = {
            "forward": pallas_gpu._screening_forward,
            "queries": pallas_gpu._screening_backward_queries,
            "keys": pallas_gpu._screening_backward_keys,
        }[kernel]
        like_q, like_v = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, v))
        rows = block.keys if kernel == "keys" else block.queries
        shape = (q.shape[0], q.shape[2], -(-q.shape[1] // rows))
        part = jax.ShapeDtypeStruct(shape, jnp.float32)
        results = {
            "forward": [like_v], "queries": [like_q, part, part], "keys": [like_q, like_v]
        }[kernel]  # fmt: skip
        arrays = (q, k, v) if kernel == "forward" else (q, k, v, dh)
        out = pallas_gpu._run(function, block, rows, arrays, window, width, None, results)
        return [x for x in out if x.ndim == 4]

    return jax.jit(run)


def measure(case: Case, kernel: str, blocks: Sequence[Block], table: Table, seconds: float):
    arguments = inputs_of(case)
    programs = []
    for block in blocks:
        sizes = {f"block {name}": size for name, size in block._asdict().items()}
        row = {"kernel": kernel, **case.row(), **sizes}
        programs.append(Program(kernel_alone(kernel, block), arguments, row))
    first = None
    for program, compiled in zip(programs, compile_all(programs), strict=True):
        if compiled is not None:
            run = partial(compiled, *arguments)
            result = run()
            first = result if first is None else first
            error = max(relative_error(a, b) for a, b in zip(result, first, strict=True))
            if not error <= TOLERANCES[case.dtype]:
                raise SystemExit(f"{program.row} differs by {error:.1e} from the first")
            program.row["median_ms"], program.row["runs"] = median_ms(
                run, jax.block_until_ready, seconds
            )
            program.row["difference"] = error
        table.add(program.row)
    table.write()


def main(
    output: Path = report.RESULTS / "gpu_blocks.csv", seconds: float = 0.1, tiny: bool = False
) -> None:
    """Measure all candidates.

    Args:
        output: the table.
        seconds: for one time, about.
        tiny: short sequences, and kernels interpreted where there is no GPU.
    """
    needs_gpu(tiny, output)
    facts = [f"command: {report.command()}", *device_facts(), *report.machine_facts()]
    table = Table(output, facts)
    with interpret_kernels(tiny and jax.default_backend() == "cpu"):
        for (dtype, key_dim), kernels in CANDIDATES.items():
            length = 256 if tiny else LENGTHS[dtype]
            case = Case(dtype, 1, 2 if tiny else 16, length, key_dim, 64, "infinite")
            for kernel, blocks in kernels.items():
                blocks = [Block(*block) for block in blocks]
                measure(case, kernel, blocks[:2] if tiny else blocks, table, seconds)
    print(f"written to {output}")


if __name__ == "__main__":
    options.call(main)
