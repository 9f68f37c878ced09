"""Block sizes worth measuring on a chip: those with which the chip's compiler spills no register.

    python -m experiments.bench.candidates v5e bfloat16 16 64      (v4, v5e, v5p, v6e, 7x)
    python -m experiments.bench.candidates sm_90 float32 16 64     (sm_80, sm_90)

Needs no device but the chip's compiler, as `compile_tpu` and `compile_gpu` do. Prints JSON: for
each kernel a list of blocks, most promising first, and for a TPU the cycles that `cost` gives each.
"""

import functools
import json
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from pallas_kernels.screening import block_sizes, pallas_tpu, tpu_kernels
from pallas_kernels.screening.block_sizes import TpuBlock, check_memory
from pallas_kernels.screening.gpu_block_sizes import Block, BlockSizes

LENGTH, HEADS = 4096, 16
EDGE_PARTS = ((128, 128), (256, 128), (512, 128), (128, 256), (128, 512), (256, 256))
TPU_KERNELS = {
    # function, whether rows are queries, and how many of q, k, v, dh it takes
    "forward": (tpu_kernels.forward, True, 3),
    "queries": (tpu_kernels.backward_queries, True, 4),
    "keys": (tpu_kernels.backward_keys, False, 4),
}


# -- TPU -------------------------------------------------------------------------------------------


def tpu_blocks_to_try(
    chip: str, kernel: str, exact: bool, key_dim: int
) -> Iterator[list[TpuBlock]]:
    """From large to small tiles; of each list, the others are worth trying if the first is good."""
    sizes = [(1024, 512), (512, 512), (512, 256), (256, 256), (128, 128)]
    if exact:
        # See `block_sizes.tpu_blocks` for the few rows.
        sizes = [(128, 512), (128, 256), (128, 128)] if kernel == "queries" else sizes[2:]
    elif key_dim >= 64:
        sizes = sizes[1:]
    # Matrix units that are 256 wide work off products faster than results are stored.
    wide = chip in ("v6e", "7x")
    strips = (64, 128) if wide or exact else (128, 64)
    stages = (False,) if kernel == "forward" else (wide, not wide)
    for rolled in (False, True):
        for rows, columns in sizes:
            for strip in strips:
                for staged in stages:
                    yield [
                        TpuBlock(rows, columns, strip, *part, staged, rolled)
                        for part in EDGE_PARTS
                        if part[0] <= rows and part[1] <= columns
                    ]


def compile_tpu_kernel(chip, kernel, block, dtype, key_dim, value_dim, packed=False):
    """The compiler's report on one kernel."""
    from experiments.bench import tpu_compiler

    function, rows_are_queries, arrays = TPU_KERNELS[kernel]

    def run(reach, numbers, *rest):
        segments, arrays = (rest[0], rest[1:]) if packed else (None, rest)
        launch = functools.partial(pallas_tpu._launch, function, dtype == jnp.float32, block)
        return launch(rows_are_queries, reach, numbers, segments, *arrays)

    shapes = [
        jax.ShapeDtypeStruct((HEADS,), jnp.int32),
        jax.ShapeDtypeStruct((3 * HEADS,), jnp.float32),
        *[jax.ShapeDtypeStruct((1, 1, LENGTH), jnp.int32)] * packed,
        *(
            jax.ShapeDtypeStruct((1, HEADS, features, LENGTH), dtype)
            for features in (key_dim, key_dim, value_dim, value_dim)[:arrays]
        ),
    ]
    (report,), _ = tpu_compiler.compile_for(f"tpu{chip}" if chip == "7x" else chip, run, *shapes)
    return report


def cost(report, block: TpuBlock) -> float:
    """Scheduled cycles of 1024 x 512 pairs inside the window, and of 1024 queries with 64 keys."""
    area = block.rows * block.columns / (1024 * 512)
    full = sum(piece.cycles for piece in report.full_tile) / area
    parts = 1024 / block.part_rows * (1 + (block.part_rows + 63) / block.part_columns)
    return full + parts * sum(piece.cycles for piece in report.edge_part)


def tpu_candidates(chip, kernel, dtype, key_dim, value_dim) -> list[tuple[float, TpuBlock]]:
    exact = dtype == jnp.float32

    def good(block):
        """(cost, block), or None if it does not fit the memory or spills."""
        shape = (block, dtype, key_dim, value_dim)
        try:
            check_memory(block_sizes.TpuBlocks(block, block, block), key_dim, value_dim, exact)
        except NotImplementedError:
            return None
        report = compile_tpu_kernel(chip, kernel, *shape)
        if report.spills or compile_tpu_kernel(chip, kernel, *shape, packed=True).spills:
            return None
        return cost(report, block), block

    for first, *others in tpu_blocks_to_try(chip, kernel, exact, key_dim):
        found = good(first)
        if found is not None:
            return sorted([found, *filter(None, map(good, others))])
    return []


# -- GPU -------------------------------------------------------------------------------------------


def gpu_blocks_to_try() -> list[Block]:
    tiles = [(128, 32), (64, 64), (64, 32), (32, 64), (32, 32), (32, 16), (16, 32)]
    return [Block(*tile, warps, stages) for tile in tiles for warps in (4, 8) for stages in (1, 2)]


def gpu_candidates(chip, dtype, key_dim, value_dim) -> dict[str, list[Block]]:
    """Of each kernel; all three are compiled together, with the same block."""
    from experiments.bench.compile_gpu import compile_screening
    from pallas_kernels.screening.block_tables import configuration, table

    found: dict[str, list[Block]] = {kernel: [] for kernel in BlockSizes._fields}
    for block in gpu_blocks_to_try():
        same = {kernel: block._asdict() for kernel in BlockSizes._fields}
        table("gpu")[configuration(dtype, key_dim, value_dim)] = same
        jax.clear_caches()
        try:
            kernels, _ = compile_screening(int(chip[3:]), dtype.name, key_dim, value_dim)
        except jax.errors.JaxRuntimeError:  # too much shared memory
            continue
        for kernel, report in kernels.items():
            # Of warps and stages, the first that do; of tiles, all.
            if not report.spills and block[:2] not in [other[:2] for other in found[kernel]]:
                found[kernel].append(block)
    return found


def main(chip: str, dtype_name: str, key_dim: int, value_dim: int) -> None:
    dtype = jnp.dtype(dtype_name)
    shape = (dtype, key_dim, value_dim)
    found = {}
    if chip.startswith("sm_"):
        for kernel, blocks in gpu_candidates(chip, *shape).items():
            found[kernel] = [[None, block._asdict()] for block in blocks]
    else:
        for kernel in TPU_KERNELS:
            candidates = tpu_candidates(chip, kernel, *shape)
            found[kernel] = [[cycles, block._asdict()] for cycles, block in candidates]
    print("candidates", json.dumps(found))


if __name__ == "__main__":
    if not sys.argv[1].startswith("sm_"):
        from experiments.bench import tpu_compiler  # noqa: F401  before a TPU is asked for
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
