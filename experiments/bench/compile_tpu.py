"""Compiles the screening kernels for TPUs that are not there, and tabulates what they need.

    python -m experiments.bench.compile_tpu
    python -m experiments.bench.compile_tpu --chips v5e --lengths 8192 --no-float32

Per kernel: scheduled cycles per 256 x 256 pairs of a tile inside the window (`full`), of the slots
that bound it, and cycles of one part of a tile on the window's edge (`edge`), of the size given;
registers spilled, and vector memory; per program, the temporaries in device memory. A schedule
counts stalls and no waits for memory. Loops inside a tile are counted once, see `rolled`.

First come the models' shapes at all lengths, then short sequences, documents, keys with a gap
between them and the queries (those of other devices), and other K and V.
"""

import sys

import jax
import jax.numpy as jnp

from experiments.bench import tpu_compiler  # first, see there
from experiments.bench.report import RESULTS, command, machine_facts, write_csv
from multiscreen_jax.train import options
from pallas_kernels.screening.block_sizes import tpu_blocks
from pallas_kernels.screening.pallas_tpu import KEY_DIMS, VALUE_DIMS, screening_pallas_tpu

CHIPS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
LENGTHS = (4096, 32768, 131072)
HEADS = (16, 32, 64)  # of the models 28M, 286M and 4B, one for each length
SHORT = (128, 256, 512)  # lengths with blocks of their own
KERNELS = {
    "screening_forward": "forward",
    "screening_backward_queries": "queries",
    "screening_backward_keys": "keys",
}


def forward_and_backward(q, k, v, window, width, dh, segments, gap):
    h, pullback = jax.vjp(
        lambda *x: screening_pallas_tpu(*x, segments, gap), q, k, v, window, width
    )
    return h, pullback(dh)


def shapes_of(length, heads, key_dim, value_dim, dtype, packed=False, apart=False):
    vectors = [jax.ShapeDtypeStruct((1, length, heads, d), dtype) for d in (key_dim, value_dim)]
    scalars = jax.ShapeDtypeStruct((heads,), jnp.float32)
    segments = jax.ShapeDtypeStruct((1, (1 + apart) * length), jnp.int32) if packed else None
    gap = jax.ShapeDtypeStruct((), jnp.int32) if apart else None
    return [vectors[0], vectors[0], vectors[1], scalars, scalars, vectors[1], segments, gap]


def rows_of(chip, length, heads, key_dim, value_dim, dtype, packed=False, apart=False):
    """One row of the table per kernel."""
    shapes = shapes_of(length, heads, key_dim, value_dim, dtype, packed, apart)
    with tpu_compiler.target(chip):
        blocks = tpu_blocks(length, key_dim, value_dim, dtype == jnp.float32)
    kernels, memory = tpu_compiler.compile_for(chip, forward_and_backward, *shapes)
    for kernel in kernels:
        block = getattr(blocks, KERNELS[kernel.name.removesuffix("_apart")])
        yield {
            "chip": chip,
            "T": length,
            "H": heads,
            "K": key_dim,
            "V": value_dim,
            "dtype": jnp.dtype(dtype).name,
            "packed": int(packed),
            "gap": int(apart),
            "kernel": kernel.name.removesuffix("_apart"),
            "block": f"{block.rows}x{block.columns}",
            "part": f"{block.part_rows}x{block.part_columns}",
            "rolled": int(block.rolled),
            **cycles_of(kernel, block, packed),
            "spills": kernel.spills,
            "vmem KiB": kernel.vmem_bytes // 1024,
            "temp MiB": round(memory.temp_size_in_bytes / 2**20, 2),
        }


def cycles_of(kernel, block, packed=False):
    """The columns `full`, `edge` and `slots`; with documents, all tiles are as on the edge."""
    area = block.rows * block.columns / 256**2
    slots = {}
    for piece in kernel.full_tile:
        for slot, cycles in piece.slots.items():
            slots[slot] = slots.get(slot, 0) + cycles
    busiest = sorted(slots, key=slots.get, reverse=True)[:3]
    full = round(sum(piece.cycles for piece in kernel.full_tile) / area)
    return {
        "full": "" if packed else full,
        "edge": sum(piece.cycles for piece in kernel.edge_part),
        "slots": "" if packed else " ".join(f"{s}:{round(slots[s] / area)}" for s in busiest),
    }


def main(
    chips: tuple[str, ...] = CHIPS,
    lengths: tuple[int, ...] = LENGTHS,
    float32: bool = True,
    name: str = "tpu_kernels",
) -> None:
    """Compile, print and write `results/NAME.csv`.

    Args:
        chips: among v4, v5e, v5p, v6e, tpu7x.
        lengths: sequence lengths T, at batch 1.
        float32: compile float32 inputs too.
        name: of the file.
    """
    dtypes = (jnp.bfloat16, jnp.float32) if float32 else (jnp.bfloat16,)
    cases = [
        (t, heads, 16, 64, d, False)
        for d in dtypes
        for t, heads in zip(lengths, HEADS, strict=False)
    ]
    cases += [(t, 16, 16, 64, dtype, False) for dtype in dtypes for t in SHORT]
    cases += [(lengths[0], 16, 16, 64, dtype, True) for dtype in dtypes]
    cases += [
        (lengths[0], 16, 16, 64, dtype, packed, True) for dtype in dtypes for packed in (0, 1)
    ]
    cases += [
        (lengths[0], 16, key_dim, value_dim, dtype, False)
        for dtype in dtypes
        for key_dim in KEY_DIMS
        for value_dim in VALUE_DIMS
        if (key_dim, value_dim) != (16, 64)
    ]
    rows = []
    for chip in chips:
        for case in cases:
            try:
                found = list(rows_of(chip, *case))
            except Exception as error:  # the table says so; other chips go on
                message = str(error).splitlines()[0][:160]
                shape = zip(("T", "H", "K", "V"), case, strict=False)
                found = [{"chip": chip, **dict(shape), "dtype": jnp.dtype(case[4]).name}]
                found[0] |= {"packed": int(case[5]), "gap": len(case) - 6, "kernel": message}
            rows += found
            for row in found:
                print(*row.values(), sep="  ", flush=True)
            header = [f"command: {command()}", *machine_facts()]
            write_csv(RESULTS / f"{name}.csv", rows, header)


if __name__ == "__main__":
    sys.exit(options.call(main))
