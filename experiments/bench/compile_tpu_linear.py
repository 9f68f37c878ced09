"""Compiles the kernels of the linear family for TPUs that are not there, and tabulates what they
need, with and without levels.

    python -m experiments.bench.compile_tpu_linear
    python -m experiments.bench.compile_tpu_linear --chips v5e --lengths 4096

Per kernel: scheduled cycles per chunk of 128 tokens and head, stalls included, waits for memory
not; registers spilled; vector memory, and what the choice of blocks reckons with; and the bytes
that pass between it and device memory, where every block of an array is moved once. A schedule
counts the body of a loop once: `loops` has the bodies inside a chunk, and `cycles` multiplies those
over the features of a state by their passes, and those over levels by half the states: so many hold
something on average. Loops over features inside those over levels, which the backward has, are
counted for one level: a lower bound.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import tpu_compiler  # first, see there
from experiments.bench.linear_models import MODELS, Model
from experiments.bench.report import RESULTS, command, machine_facts, write_csv
from multiscreen_jax.train import options
from pallas_kernels.linear_attention import tpu_walk
from pallas_kernels.linear_attention.pallas_tpu import backward_plan, make_plan
from pallas_kernels.linear_attention.tpu_chunks import CHUNK, Plan

CHIPS = ("v5e", "v5p", "v6e")
LENGTHS = (4096, 16384, 131072)


def plan_of(model: Model, length: int, dtype: Any, levels: bool) -> Plan:
    states = max(1, (-(-length // CHUNK) - 1).bit_length()) if levels else 1
    return make_plan(
        1, length, *model[:4], states, delta=model.delta, levels=levels, packed=False,
        exact=dtype == jnp.float32,
    )  # fmt: skip


def programs(plan: Plan, dtype: Any) -> dict[str, tuple[Plan, Any, list[Any]]]:
    """The forward that training runs, and the backward: plans, functions and shapes."""
    back = backward_plan(plan)
    length, state = plan.chunks * CHUNK, (plan.states, plan.value_dim, plan.key_dim)

    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct((1, *sizes), dtype)

    f32 = jnp.float32
    masks = shape(plan.chunks if plan.levels else 1, dtype=jnp.int32)
    key = shape(plan.groups, plan.key_dim, length)
    value = shape(plan.heads, plan.value_dim, length)
    rows = shape(plan.heads, plan.rows, length, dtype=f32)
    solve = [shape(plan.heads, CHUNK, length)] * plan.delta
    states = shape(plan.heads, *state, dtype=f32)
    kept = shape(plan.heads, plan.segments, *state, dtype=plan.operand)

    def forward(reads, target, q, k, v, rows, states, *solve):
        solve = solve[0] if solve else None
        return tpu_walk.forward(plan, True, reads, target, q, k, v, rows, solve, states)

    def backward(reads, target, q, k, v, rows, kept, dy, dlast, *solve):
        solve = solve[0] if solve else None
        return tpu_walk.backward(back, reads, target, q, k, v, rows, solve, kept, dy, dlast)

    inputs = [masks, masks, key, key, value, rows]
    return {
        "forward": (plan, forward, [*inputs, states, *solve]),
        "backward": (back, backward, [*inputs, kept, value, states, *solve]),
    }


def rows_of(chip: str, name: str, length: int, dtype: Any, levels: bool):
    """One row of the table per kernel."""
    model = MODELS[name]
    with tpu_compiler.target(chip):  # of whose vector memory the plans take what they need
        kinds = programs(plan_of(model, length, dtype, levels), dtype)
    for direction, (plan, function, shapes) in kinds.items():
        kernels, memory = tpu_compiler.compile_for(chip, function, *shapes)
        (kernel,) = kernels
        moved = memory.argument_size_in_bytes + memory.output_size_in_bytes
        yield {
            "chip": chip,
            "model": name,
            "levels": plan.states if levels else 0,
            "T": length,
            "dtype": jnp.dtype(dtype).name,
            "kernel": direction,
            **cycles_of(kernel, plan),
            "spills": kernel.spills,
            "vmem MiB": round(kernel.vmem_bytes / 2**20, 1),
            "reckoned MiB": round(tpu_walk.memory(plan, direction) / 2**20, 1),
            "heads": plan.block,
            "HBM MiB": round(moved / 2**20, 1),
            "bytes per token and head": round(moved / (plan.chunks * CHUNK * plan.heads)),
        }


def cycles_of(kernel: tpu_compiler.Kernel, plan: Plan) -> dict[str, Any]:
    """Columns `cycles`, per chunk and head, and `loops`, bodies of the loops inside chunks."""
    body = sum(piece.cycles for piece in kernel.pieces if piece.depth == 2)
    loops = [piece for piece in kernel.pieces if piece.depth > 2]
    # Outside the loop over chunks: the scores, and copies of states, once a segment.
    around = sum(piece.cycles for piece in kernel.pieces if piece.depth == 1) / plan.segment
    parts = max(1, plan.value_dim // 64)
    total = body + around
    for piece in loops:
        of_levels = plan.levels and piece.depth == 3
        total += piece.cycles * (plan.states / 2 if of_levels else parts)
    return {
        "cycles": round(total / plan.block),
        "loops": "+".join(str(piece.cycles) for piece in loops if piece.cycles > 20),
    }


def main(
    chips: tuple[str, ...] = CHIPS,
    lengths: tuple[int, ...] = LENGTHS,
    float32: bool = True,
    name: str = "tpu_linear_kernels",
) -> None:
    """Compile, print and write `results/NAME.csv`.

    Args:
        chips: among v4, v5e, v5p, v6e, tpu7x.
        lengths: sequence lengths T, at batch 1.
        float32: compile float32 inputs too, at the first length.
        name: of the file.
    """
    cases = [(model, t, jnp.bfloat16) for model in MODELS for t in lengths]
    cases += [(model, lengths[0], jnp.float32) for model in MODELS] * float32
    rows = []
    for chip in chips:
        for case in cases:
            for levels in (False, True):
                try:
                    found = list(rows_of(chip, *case, levels))
                except Exception as error:  # the table says so; others go on
                    message = str(error).splitlines()[0][:160]
                    found = [{"chip": chip, "model": case[0], "levels": int(levels)}]
                    found[0] |= {"T": case[1], "dtype": jnp.dtype(case[2]).name, "kernel": message}
                rows += found
                for row in found:
                    print(*row.values(), sep="  ", flush=True)
                write_csv(
                    RESULTS / f"{name}.csv", rows, [f"command: {command()}", *machine_facts()]
                )


if __name__ == "__main__":
    sys.exit(options.call(main))
