"""Compiles the decode kernels for accelerators that are not attached; prints what they need.

python -m tests.aot.compile_decode v5e:1x1      (TPU topologies)
python -m tests.aot.compile_decode sm_90        (sm_80, sm_90)
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
os.environ["JAX_PLATFORMS"] = "cpu"
if not any(Path("/dev").glob("accel*")) and not any(Path("/dev").glob("vfio/[0-9]*")):
    # libtpu guards the hardware with a lock file; without hardware it only stops parallel tests.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels.screening import screening_decode
from pallas_kernels.screening.summaries import BlockSummaries

SLOTS = 1 << 20
# (queries, dtype of the cache, value dimension, with summaries)
CASES = (
    (1, jnp.bfloat16, 64, False),
    (1, jnp.bfloat16, 64, True),
    (1, jnp.float32, 64, True),
    (3, jnp.float32, 32, True),
    (4, jnp.bfloat16, 64, True),
)
_GPUS = {
    "sm_80": (
        "major: 8 minor: 0",
        "core_count: 108 shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912",
    ),
    "sm_90": (
        "major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES",
        "core_count: 132 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448",
    ),
}


def arguments(sharding, queries, dtype, value_dim, with_summaries, batch=2, heads=8, key_dim=16):
    def shape(dtype, *dims):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)

    summaries = None
    if with_summaries:
        box = shape(dtype, batch, SLOTS // 32, key_dim)
        summaries = BlockSummaries(box, box, shape(jnp.float32, batch, SLOTS // 32, 1))
    return (
        shape(dtype, batch, queries, heads, key_dim),
        shape(dtype, batch, SLOTS, key_dim),
        shape(dtype, batch, SLOTS, value_dim),
        shape(jnp.int32, batch, queries),
        *(shape(jnp.int32, batch) for _ in range(2)),
        *(shape(jnp.int32, heads) for _ in range(2)),
        *(shape(jnp.float32, heads) for _ in range(2)),
        summaries,
    )


def decode(*args, implementation):
    *args, summaries = args
    return screening_decode(*args, summaries=summaries, implementation=implementation)


def compile_tpu(topology, case):
    device = topologies.get_topology_desc(topology, platform="tpu").devices[0]
    mesh = Mesh(np.array([device]), ("d",))
    args = arguments(NamedSharding(mesh, PartitionSpec()), *case)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(decode, static_argnames="implementation").lower(
            *args, implementation="pallas_tpu"
        )
    return lowered.compile()


def compile_gpu(name, case, dump):
    capability, sizes = _GPUS[name]
    target = f"""gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32
        shared_memory_per_block: 49152 threads_per_core_limit: 2048 fpus_per_core: 64 {sizes}
        block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        memory_bandwidth: 2000000000000 l2_cache_size: 41943040 clock_rate_ghz: 1.4
        device_memory_size: 80000000000 registers_per_core_limit: 65536
        registers_per_block_limit: 65536 cuda_compute_capability {{ {capability} }} }}
        platform_name: "CUDA" runtime_version {{ major: 13 }}"""
    device = topologies.get_topology_desc(
        platform="cuda", topology="1x1x1", target_config=target
    ).devices[0]
    mesh = Mesh(np.array([device]), ("d",))
    args = arguments(NamedSharding(mesh, PartitionSpec()), *case)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(decode, static_argnames="implementation").lower(
            *args, implementation="pallas_gpu"
        )
    return lowered.compile(compiler_options={"xla_dump_to": dump})


def registers(dump):
    """(registers, bytes of stack, bytes spilt) of the kernel, by the assembler's own report."""
    import triton

    # The wheel's other assembler is too old for the PTX that XLA writes.
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas-blackwell"
    (ptx,) = [p for p in Path(dump).glob("*.ptx") if ".entry screening_decode" in p.read_text()]
    architecture = re.search(r"\.target\s+(sm_\w+)", ptx.read_text()).group(1)
    log = subprocess.run(
        [assembler, "-v", f"-arch={architecture}", ptx, "-o", f"{dump}/kernel.cubin"],
        capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    spilt = sum(int(n) for n in re.findall(r"(\d+) bytes spill", log))
    used, stack = (re.search(p, log) for p in (r"Used (\d+) registers", r"(\d+) bytes stack"))
    return int(used.group(1)), int(stack.group(1)), spilt


def main(target: str) -> None:
    for case in CASES:
        queries, dtype, value_dim, with_summaries = case
        label = f"T={queries} {jnp.dtype(dtype).name} V={value_dim} summaries={with_summaries}"
        with tempfile.TemporaryDirectory() as dump:
            if target.startswith("sm_"):
                compiled = compile_gpu(target, case, dump)
                used, stack, spilt = registers(dump)
                label += f" registers {used} stack {stack} spilt {spilt}"
            else:
                compiled = compile_tpu(target, case)
        memory = compiled.memory_analysis()
        print(
            f"{target} {label} cache_mib {memory.argument_size_in_bytes / 2**20:.1f} "
            f"temp_mib {memory.temp_size_in_bytes / 2**20:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1])
