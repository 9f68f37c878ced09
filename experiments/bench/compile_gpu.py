"""What the GPU compiler makes of the screening kernels, for every supported size.

    pip install --no-deps jax-cuda13-plugin==X jax-cuda13-pjrt==X      X: the version of jax
    JAX_PLATFORMS=cpu python -m experiments.bench.compile_gpu

No GPU is needed. Forward and backward are compiled together, first at the shapes of the models
(K=16, V=64), then with a gap between keys and queries (those of other devices), then at all other
sizes, with and without documents (the former at a length that is no multiple of a block). One row
is one kernel. Ends with an error if a kernel spills or has no tensor-core instruction, or if memory
beyond arguments and results exceeds 5 % of them.
"""

from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.bench.gpu_compiler import GPUS, Kernel, Program, compile_program, missing
from experiments.bench.report import RESULTS, machine_facts, publish
from multiscreen_jax.train import options
from pallas_kernels.screening.gpu_block_sizes import DTYPES, KEY_DIMS, VALUE_DIMS, block_sizes
from pallas_kernels.screening.pallas_gpu import screening_pallas_gpu

MODEL_SHAPES = ((16, 4096), (32, 32768), (64, 131072))  # heads, tokens
KERNELS = {
    "forward": "screening_forward",
    "queries": "screening_backward_queries",
    "keys": "screening_backward_keys",
}


def compile_screening(
    arch: int,
    dtype: str,
    key_dim: int = 16,
    value_dim: int = 64,
    heads: int = 16,
    length: int = 4096,
    documents: bool = False,
    apart: bool = False,
    *,
    refuse_spills: bool = False,
) -> tuple[dict[str, Kernel], Program]:
    """Forward and all gradients of one call at batch 1: the three kernels by name, and the rest."""

    def run(dh, segment_ids, gap, *inputs):
        h, pullback = jax.vjp(lambda *x: screening_pallas_gpu(*x, segment_ids, gap), *inputs)
        return h, pullback(dh)

    q, v = (jax.ShapeDtypeStruct((1, length, heads, d), dtype) for d in (key_dim, value_dim))
    per_head = jax.ShapeDtypeStruct((heads,), jnp.float32)
    segment_ids = None
    if documents:
        segment_ids = jax.ShapeDtypeStruct((1, (1 + apart) * length), jnp.int32)
    gap = jax.ShapeDtypeStruct((), jnp.int32) if apart else None
    arguments = v, segment_ids, gap, q, q, v, per_head, per_head
    program = compile_program(run, arguments, arch, refuse_spills=refuse_spills)
    by_name = {kernel.name.removesuffix("_apart"): kernel for kernel in program.kernels}
    return {short: by_name[name] for short, name in KERNELS.items()}, program


def faults(kernels: dict[str, Kernel], program: Program) -> list[str]:
    """What is wrong with a compiled call; empty if nothing is."""
    found = []
    for name, kernel in kernels.items():
        if kernel.spills:
            found.append(f"{name} spills {kernel.spills} bytes")
        if not kernel.uses_tensor_cores:
            found.append(f"{name} has no tensor-core instruction")
    if program.temporaries > 0.05 * (program.arguments + program.outputs):
        found.append(f"{program.temporaries} bytes of temporaries")
    return found


def main(name: str = "compile_gpu", quick: bool = False) -> None:
    """Compile and write one table.

    Args:
        name: of the table in `results/`.
        quick: the first model shape only.
    """
    if reason := missing():
        raise SystemExit(reason)
    facts = machine_facts()
    calls, refused = [], []
    for dtype in DTYPES:
        for heads, length in MODEL_SHAPES[: 1 if quick else None]:
            calls.append((dtype, 16, 64, heads, length, False, False))
        calls += [(dtype, 16, 64, 16, 4001, documents, True) for documents in (False, True)]
        for key_dim in () if quick else KEY_DIMS:
            for value_dim in VALUE_DIMS:
                try:
                    block_sizes(None, dtype, key_dim, value_dim)
                except NotImplementedError as error:
                    refused.append(f"refused: {error}")
                    continue
                if (key_dim, value_dim) != (16, 64):
                    calls.append((dtype, key_dim, value_dim, 16, 4096, False, False))
                calls.append((dtype, key_dim, value_dim, 16, 4001, True, False))

    rows, bad = [], []
    for call in calls:
        dtype, key_dim, value_dim, heads, length, documents, apart = call
        sizes = block_sizes(None, dtype, key_dim, value_dim)._asdict()
        for arch in GPUS:
            kernels, program = compile_screening(arch, *call)
            bad += [f"sm_{arch} {call}: {fault}" for fault in faults(kernels, program)]
            jax.clear_caches()
            for kernel_name, kernel in kernels.items():
                queries, keys, warps, stages = sizes[kernel_name]
                rows.append(
                    {
                        "arch": f"sm_{arch}",
                        "dtype": dtype,
                        "K": key_dim,
                        "V": value_dim,
                        "H": heads,
                        "T": length,
                        "documents": "yes" if documents else "no",
                        "gap": "yes" if apart else "no",
                        "kernel": kernel_name,
                        "block": f"{queries}x{keys}",
                        "warps": warps,
                        "stages": stages,
                        "registers": kernel.registers,
                        "spill bytes": kernel.spills,
                        "shared bytes": kernel.shared,
                        "mma": kernel.mma,
                        "wgmma": kernel.wgmma,
                        "blocks per core": kernel.blocks_per_core(arch),
                        "temporary bytes": program.temporaries,
                        "argument and result bytes": program.arguments + program.outputs,
                    }
                )
        print(f"{call}: {'; '.join(bad[-3:]) or 'good'}", flush=True)
    publish(rows, Path(RESULTS) / f"{name}.csv", refused, facts)
    if bad:
        raise SystemExit("\n".join(bad))


if __name__ == "__main__":
    options.call(main)
