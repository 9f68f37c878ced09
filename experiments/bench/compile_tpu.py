"""Compiles the screening kernels for TPUs that are not there, and tabulates what they need.

    python -m experiments.bench.compile_tpu
    python -m experiments.bench.compile_tpu --chips v5e --lengths 8192 --no-float32

Per kernel: scheduled cycles per 256 x 256 pairs of a tile inside the window (`full`) and of one on
its edge (`masked`), of the slot that bounds the full one, registers spilled, and vector memory; per
program, the temporaries in device memory. A schedule counts stalls and no waits for memory.
"""

import csv
import sys

import jax
import jax.numpy as jnp
import tyro

from experiments.bench import tpu_compiler  # first, see there
from experiments.bench.report import RESULTS, command, machine_facts
from pallas_kernels.screening.block_sizes import tpu_blocks
from pallas_kernels.screening.pallas_tpu import screening_pallas_tpu

CHIPS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
LENGTHS = (4096, 32768, 131072)
# Heads, K and V of the models.
SHAPES = ((16, 16, 64), (32, 16, 64), (64, 16, 64))
KERNELS = {
    "screening_forward": "forward",
    "screening_backward_queries": "queries",
    "screening_backward_keys": "keys",
}


def forward_and_backward(q, k, v, window, width, dh, *segments):
    h, pullback = jax.vjp(lambda *x: screening_pallas_tpu(*x, *segments), q, k, v, window, width)
    return h, pullback(dh)


def shapes_of(length, heads, key_dim, value_dim, dtype, packed=False):
    vectors = [jax.ShapeDtypeStruct((1, length, heads, d), dtype) for d in (key_dim, value_dim)]
    scalars = jax.ShapeDtypeStruct((heads,), jnp.float32)
    segments = [jax.ShapeDtypeStruct((1, length), jnp.int32)] * packed
    return [vectors[0], vectors[0], vectors[1], scalars, scalars, vectors[1], *segments]


def rows_of(chip, length, heads, key_dim, value_dim, dtype, packed=False):
    """One row of the table per kernel."""
    shapes = shapes_of(length, heads, key_dim, value_dim, dtype, packed)
    with tpu_compiler.target(chip):
        blocks = tpu_blocks(length, key_dim, value_dim, dtype == jnp.float32, packed)
    kernels, memory = tpu_compiler.compile_for(chip, forward_and_backward, *shapes)
    for kernel in kernels:
        block = getattr(blocks, KERNELS[kernel.name])
        area = block.rows * block.columns / 256**2
        slots = {}
        for piece in kernel.full_tile:
            for slot, cycles in piece.slots.items():
                slots[slot] = slots.get(slot, 0) + cycles
        busiest = sorted(slots, key=slots.get, reverse=True)[:3]
        # A masked tile runs its strips one after the other, in place of the first piece's product.
        strips = block.rows // block.strip
        pieces = kernel.tile if packed else kernel.tile[1:]
        masked = sum(piece.cycles * (strips if piece.depth > 2 else 1) for piece in pieces)
        full = "" if packed else round(sum(piece.cycles for piece in kernel.full_tile) / area)
        yield {
            "chip": chip,
            "T": length,
            "H": heads,
            "K": key_dim,
            "V": value_dim,
            "dtype": jnp.dtype(dtype).name,
            "packed": int(packed),
            "kernel": kernel.name,
            "block": f"{block.rows}x{block.columns}",
            "full": full,
            "masked": round(masked / area),
            "slots": " ".join(f"{slot}:{round(slots[slot] / area)}" for slot in busiest),
            "spills": kernel.spills,
            "spills in tiles": sum(piece.spills for piece in kernel.tile),
            "vmem KiB": kernel.vmem_bytes // 1024,
            "temp MiB": round(memory.temp_size_in_bytes / 2**20, 2),
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
    cases = [(t, *shape, jnp.bfloat16, False) for t in lengths for shape in SHAPES]
    cases.append((lengths[0], 16, 16, 64, jnp.bfloat16, True))
    cases += [(t, 16, 16, 64, jnp.float32, False) for t in lengths if float32]
    rows = []
    for chip in chips:
        for case in cases:
            try:
                found = list(rows_of(chip, *case))
            except Exception as error:  # the table says so; other chips go on
                message = str(error).splitlines()[0][:160]
                found = [{"chip": chip, "T": case[0], "H": case[1], "kernel": message}]
            rows += found
            for row in found:
                print(*row.values(), sep="  ", flush=True)
            _write(RESULTS / f"{name}.csv", rows)


def _write(path, rows):
    columns = max((list(row) for row in rows), key=len)
    with path.open("w", newline="") as file:
        for line in (f"command: {command()}", *machine_facts()):
            file.write(f"# {line}\n")
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
