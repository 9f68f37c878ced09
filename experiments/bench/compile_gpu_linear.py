"""What the GPU compiler makes of the kernels of the linear family.

    pip install --no-deps jax-cuda13-plugin==X jax-cuda13-pjrt==X      X: the version of jax
    JAX_PLATFORMS=cpu python -m experiments.bench.compile_gpu_linear

No GPU is needed. First the whole ops, forward and all gradients, at the shapes of models; then the
kernels alone, at all sizes that they take without padding. One row is one kernel. Ends with an
error if a kernel spills or has no tensor-core instruction.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from experiments.bench.gpu_compiler import GPUS, Kernel, Program, compile_program, missing
from experiments.bench.report import RESULTS, machine_facts, publish
from multiscreen_jax.train import options
from pallas_kernels.linear_attention import gpu_walk
from pallas_kernels.linear_attention.gpu_walk import CHUNK, ChunkMaps, Schedule, Sizes, sizes
from pallas_kernels.linear_attention.pallas_gpu import walk
from pallas_kernels.linear_attention.tokens import Levels

KEY_DIMS = (16, 32, 64, 128, 192, 256)
VALUE_DIMS = (16, 32, 64)


class Call(NamedTuple):
    """One call at batch 1; `delta` is the delta rule, else SSD."""

    dtype: str
    heads: int
    groups: int
    key_dim: int
    value_dim: int
    length: int
    delta: bool
    levels: bool


_MODELS = {
    "Mamba-2 800M": Call("bfloat16", 48, 1, 128, 64, 4096, delta=False, levels=False),
    "Gated DeltaNet 800M": Call("bfloat16", 6, 6, 192, 384, 4096, delta=True, levels=False),
    "tiny SSD": Call("bfloat16", 4, 1, 32, 32, 4096, delta=False, levels=False),
    "tiny delta": Call("bfloat16", 4, 4, 64, 64, 4096, delta=True, levels=False),
    "tiny SSD, float32": Call("float32", 4, 1, 32, 32, 4096, delta=False, levels=False),
    "tiny delta, float32": Call("float32", 4, 4, 64, 64, 4096, delta=True, levels=False),
}


def model_calls() -> Iterator[tuple[str, Call]]:
    for name, call in _MODELS.items():
        for length in (4096, 16384, 131072) if "800M" in name else (4096,):
            for levels in (False, True):
                yield name, call._replace(length=length, levels=levels)


def size_calls() -> Iterator[tuple[str, Call]]:
    for dtype in ("bfloat16", "float32"):
        for key_dim in KEY_DIMS:
            for value_dim in VALUE_DIMS:
                for delta in (False, True):
                    for levels in (False, True):
                        yield "", Call(dtype, 2, 2, key_dim, value_dim, 512, delta, levels)


def compile_op(arch: int, call: Call) -> Program:
    """Forward and all gradients."""
    dtype, heads, groups, key_dim, value_dim, length, delta, with_levels = call
    chunks, states = length // CHUNK, _states(call)

    def run(dy, dlast, masks, *inputs):
        def op(q, k, v, g, beta, state, scales):
            levels = None if scales is None else Levels(scales, *masks)
            return walk(q, k, v, g, beta, state, None, levels, None)

        results, pullback = jax.vjp(op, *inputs)
        return results, pullback((dy, dlast))

    q = _shape(dtype, length, groups, key_dim)
    v = _shape(dtype, length, heads, value_dim)
    gates = _shape("float32", length, heads)
    state = _shape("float32", heads, states, key_dim, value_dim)
    scales = masks = None
    if with_levels:
        scales = _shape("float32", length, heads, CHUNK.bit_length() + states)
        masks = [_shape("int32", chunks)] * 2
    inputs = (q, q, v, gates, gates if delta else None, state, scales)
    return compile_program(run, (v, state, masks, *inputs), arch)


def compile_kernels(arch: int, call: Call) -> Program:
    """Both kernels, without what XLA does around them."""
    dtype, heads, groups, key_dim, value_dim, length, delta, levels = call
    chunks, states = length // CHUNK, _states(call)

    def run(maps, state, schedule, dy):
        y, last, kept = gpu_walk.forward(maps, state, schedule, keep=True)
        return y, gpu_walk.backward(maps, schedule, kept, dy, last)

    keys = _shape(dtype, length, groups, key_dim)
    weights = _shape("float32", heads, states, length)
    maps = ChunkMaps(
        reads=keys,
        writes=keys,
        updates=_shape(dtype, length, heads, value_dim),
        erases=_shape(dtype, length, heads, key_dim) if delta else None,
        weights=weights if levels or not delta else None,
        through=_shape("float32", heads, chunks),
    )
    state = _shape("float32", heads, states, key_dim, value_dim)
    schedule = Schedule(*[_shape("int32", chunks)] * 2) if levels else None
    dy = _shape("float32", length, heads, value_dim)
    return compile_program(run, (maps, state, schedule, dy), arch)


def sizes_of(call: Call) -> Sizes:
    """NotImplementedError where K or V are too great, or would be padded."""
    shape = call.key_dim, call.value_dim
    needed = gpu_walk.padded(*shape, call.dtype, call.delta, call.levels)
    if needed != shape:
        raise NotImplementedError(f"K, V = {shape} go as {needed}")
    return sizes(*shape, call.dtype, call.delta, call.levels)


def _states(call):
    return (call.length // CHUNK).bit_length() if call.levels else 1


def _shape(dtype, *shape):
    return jax.ShapeDtypeStruct((1, *shape), dtype)


def kernels_of(program: Program) -> dict[str, Kernel]:
    """Ours, by the end of their names; the forward kernel that keeps states is a second one."""
    return {k.name.removeprefix("linear_"): k for k in program.kernels if "linear_" in k.name}


def faults(kernels: dict[str, Kernel]) -> list[str]:
    """What is wrong with a compiled call; empty if nothing is."""
    found = [] if len(kernels) >= 2 else [f"has the kernels {', '.join(kernels) or 'none'}"]
    for name, kernel in kernels.items():
        if kernel.spills:
            found.append(f"{name} spills {kernel.spills} bytes")
        if not kernel.uses_tensor_cores:
            found.append(f"{name} has no tensor-core instruction")
    return found


def main(name: str = "compile_gpu_linear", quick: bool = False) -> None:
    """Compile and write one table.

    Args:
        name: of the table in `results/`.
        quick: the shapes of the models only, at the shorter length.
    """
    if reason := missing():
        raise SystemExit(reason)
    facts = machine_facts()
    calls = [(*call, compile_op) for call in model_calls()]
    if quick:
        calls = [x for x in calls if x[1].length == 4096]
    else:
        calls += [(*call, compile_kernels) for call in size_calls()]
    rows, bad, refused = [], [], []
    for model, call, compiler in calls:
        for arch in GPUS:
            gpu_walk.compute_capability = lambda arch=arch: arch
            try:
                size = sizes_of(call)
            except NotImplementedError as error:
                refused.append(f"refused on sm_{arch}: {error}")
                continue
            program = compiler(arch, call)
            jax.clear_caches()
            found = faults(kernels_of(program))
            bad += [f"sm_{arch} {call}: {fault}" for fault in found]
            print(f"sm_{arch} {call}: {'; '.join(found) or 'good'}", flush=True)
            for kernel_name, kernel in kernels_of(program).items():
                rows.append(
                    {
                        "arch": f"sm_{arch}",
                        "model": model,
                        "dtype": call.dtype,
                        "rule": "delta" if call.delta else "ssd",
                        "levels": "yes" if call.levels else "no",
                        "H": call.heads,
                        "G": call.groups,
                        "K": call.key_dim,
                        "V": call.value_dim,
                        "T": call.length,
                        "kernel": kernel_name,
                        "values": size.values,
                        "keys": size.keys,
                        "warps": size.warps,
                        "stages": size.stages,
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
    publish(rows, Path(RESULTS) / f"{name}.csv", sorted(set(refused)), facts)
    if bad:
        raise SystemExit("\n".join(bad))


if __name__ == "__main__":
    options.call(main)
