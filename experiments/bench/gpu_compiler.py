"""What the GPU compiler makes of a program: registers, spills, shared memory, tensor-core use.

No GPU is needed: XLA's CUDA plugin compiles for a described device. `ptxas`, from the CUDA toolkit
or the triton package, then assembles the same PTX again and tells registers and spills. Without it
one can still learn whether XLA's own assembler, which makes what runs, spills.

    pip install --no-deps jax-cuda13-plugin==X jax-cuda13-pjrt==X      X: the version of jax
    JAX_PLATFORMS=cpu python ...
"""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding


@dataclass(frozen=True)
class Gpu:
    """What the compiler asks of a device; sizes in bytes."""

    name: str
    capability: str
    cores: int
    lanes_per_core: int
    shared_per_core: int
    shared_per_block: int
    memory: int
    bandwidth: int
    cache: int
    clock_ghz: float


GPUS = {
    80: Gpu(
        name="NVIDIA A100-SXM4-80GB",
        capability="major: 8 minor: 0",
        cores=108,
        lanes_per_core=64,
        shared_per_core=164 * 1024,
        shared_per_block=163 * 1024,
        memory=80 * 10**9,
        bandwidth=2039 * 10**9,
        cache=40 * 2**20,
        clock_ghz=1.41,
    ),
    90: Gpu(
        name="NVIDIA H100 80GB HBM3",
        # wgmma belongs to sm_90a, the accelerated feature set.
        capability="major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES",
        cores=132,
        lanes_per_core=128,
        shared_per_core=228 * 1024,
        shared_per_block=227 * 1024,
        memory=80 * 10**9,
        bandwidth=3352 * 10**9,
        cache=50 * 2**20,
        clock_ghz=1.98,
    ),
}


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel; sizes in bytes, registers per thread."""

    name: str
    grid: tuple[int, ...]
    threads: int
    shared: int
    mma: int  # mma.sync instructions
    wgmma: int  # warpgroup instructions, sm_90 only
    registers: int
    spill_stores: int
    spill_loads: int

    @property
    def spills(self) -> int:
        return self.spill_stores + self.spill_loads

    @property
    def uses_tensor_cores(self) -> bool:
        return self.mma + self.wgmma > 0

    def blocks_per_core(self, arch: int) -> int:
        """How many blocks registers and shared memory let run together on one multiprocessor."""
        by_registers = 65536 // (-(-self.registers // 8) * 8 * self.threads)
        by_shared = GPUS[arch].shared_per_core // (self.shared + 1024)
        return min(by_registers, by_shared, 2048 // self.threads)


@dataclass(frozen=True)
class Program:
    """A compiled program: its kernels, and memory beside arguments and results, in bytes."""

    kernels: tuple[Kernel, ...]
    arguments: int
    outputs: int
    temporaries: int


def missing() -> str | None:
    """Why nothing can be compiled here; None if it can."""
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        return "needs the CUDA compiler: pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt"
    return None


def compile_program(
    function: Callable[..., Any],
    shapes: Sequence[Any],
    arch: int,
    *,
    refuse_spills: bool = False,
) -> Program:
    """Compile function(*shapes) for sm_80 or sm_90.

    Args:
        function: to be jitted.
        shapes: pytrees of `jax.ShapeDtypeStruct`.
        arch: 80 or 90.
        refuse_spills: let XLA raise if one of its kernels spills a register, and do not run ptxas:
            registers are then unknown (-1) and spills zero.
    """
    options = {"xla_gpu_fail_ptx_compilation_on_register_spilling": refuse_spills}
    where = SingleDeviceSharding(_device(arch))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes)
    with tempfile.TemporaryDirectory() as folder:
        with jax.sharding.use_abstract_mesh(_abstract_mesh(arch)):  # what Pallas lowers for
            lowered = jax.jit(function).lower(*shapes)
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, **options})
        launches = _launches(Path(folder))
        kernels = [
            Kernel(
                name,
                *launches[name],
                mma=len(re.findall(r"\bmma\.sync", ptx)),
                wgmma=len(re.findall(r"\bwgmma\.mma_async", ptx)),
                **(_NOT_MEASURED if refuse_spills else _assemble(ptx)),
            )
            for ptx in sorted(p.read_text() for p in Path(folder).glob("*.ptx"))
            for name in re.findall(r"\.entry (\w+)", ptx)
        ]
    memory = compiled.memory_analysis()
    return Program(
        tuple(kernels),
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.temp_size_in_bytes,
    )


def devices(arch: int, nodes: int = 1, gpus: int = 1) -> list[Any]:
    """The compiler's descriptions of the GPUs of some nodes, one `process_index` a node.

    Their `slice_index` is 0, whatever the nodes; of attached GPUs a node is a slice.
    """
    gpu = GPUS[arch]
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_block_optin": gpu.shared_per_block,
        "shared_memory_per_core": gpu.shared_per_core,
        "core_count": gpu.cores,
        "fpus_per_core": gpu.lanes_per_core,
        "memory_bandwidth": gpu.bandwidth,
        "device_memory_size": gpu.memory,
        "l2_cache_size": gpu.cache,
        "clock_rate_ghz": gpu.clock_ghz,
    }
    lines = [f"{key}: {value}" for key, value in fields.items()]
    description = (
        f"gpu_device_info {{ {' '.join(lines)} cuda_compute_capability {{ {gpu.capability} }} }} "
        'platform_name: "CUDA" runtime_version { major: 13 } '
        f'dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{gpu.name}"'
    )
    # Sizes of a partition in hosts and in devices follow the number of partitions.
    topology = topologies.get_topology_desc(
        platform="cuda", topology=f"1x{nodes}x{gpus}", target_config=description
    )
    return topology.devices


@lru_cache
def _device(arch):
    return devices(arch)[0]


def _abstract_mesh(arch):
    device = AbstractDevice(GPUS[arch].name, GPUS[arch].cores, "gpu")
    return AbstractMesh((), (), abstract_device=device)


def _launches(folder):
    """Grid, threads and dynamic shared memory by kernel, from the list of launches XLA writes."""
    pattern = r"(\S+) grid: \[([\d, ]+)\] threads: \[([\d, ]+)\]\s+shared_memory: (\d+)"
    (text,) = (p.read_text() for p in folder.glob("*thunk_sequence.txt"))
    launches = {}
    for name, grid, threads, shared in re.findall(pattern, text):
        grid, threads = ([int(n) for n in x.split(",")] for x in (grid, threads))
        launches[name] = tuple(grid), threads[0], int(shared)
    return launches


@lru_cache
def _ptxas():
    if found := shutil.which("ptxas"):
        return found
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        # The other one beside it is older than the PTX that XLA writes.
        bundled = Path(triton.origin).parent / "backends/nvidia/bin/ptxas-blackwell"
        if bundled.exists():
            return str(bundled)
    raise FileNotFoundError("needs ptxas, from the CUDA toolkit or the triton package")


_NOT_MEASURED = {"registers": -1, "spill_stores": 0, "spill_loads": 0}


def _assemble(ptx):
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx, encoding="utf-8")
        command = [_ptxas(), "-v", f"-arch={target}", "kernel.ptx", "-o", "kernel.cubin"]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    log = run.stdout + run.stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", log)[1]),
        "spill_stores": int(re.search(r"(\d+) bytes spill stores", log)[1]),
        "spill_loads": int(re.search(r"(\d+) bytes spill loads", log)[1]),
    }
