"""Compiles whole training steps of the log-linear 800M models for TPU slices that are not there.

    python -m experiments.bench.compile_step
    python -m experiments.bench.compile_step --topologies v5e:16x16 --models log-linear-gdn-800m

Model, loss, gradient and AdamW of `multiscreen_jax.train`, bfloat16 activations, parameters and
optimizer state divided over all chips (fsdp) and one sequence on each. The table has the memory of
one chip, which the compiler must fit into the chip's, and the kernels that the step calls.
"""

import re
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import topologies as jax_topologies
from jax.sharding import AxisType, Mesh

import multiscreen_jax as mj
from experiments.bench import tpu_compiler  # noqa: F401  first, see there
from experiments.bench.report import RESULTS, command, machine_facts, write_csv
from multiscreen_jax import sharding
from multiscreen_jax.train.config import OptimConfig
from multiscreen_jax.train.optimizer import make_optimizer, make_schedule
from multiscreen_jax.train.state import abstract_state
from multiscreen_jax.train.step import make_train_step
from pallas_kernels.common.dispatch import record_choices

SLICES = {"v5e:16x16": "v5e-256", "v5p:4x4x4": "v5p-128"}
MODELS = ("log-linear-mamba2-800m", "log-linear-gdn-800m")


def compile_step(name: str, topology: str, length: int) -> dict:
    """One row of the table."""
    devices = jax_topologies.get_topology_desc(topology, platform="tpu").devices
    mesh = Mesh(
        np.array(devices).reshape(1, -1, 1, 1), sharding.MESH_AXES,
        axis_types=(AxisType.Auto,) * 4,
    )  # fmt: skip
    model, _ = mj.models.create(name, dtype="bfloat16", remat="full")
    config = OptimConfig(learning_rate=1e-3)
    schedule = make_schedule(config, 1000)
    optimizer = make_optimizer(config, 1000)
    tokens = jax.ShapeDtypeStruct(
        (len(devices), length + 1), jnp.int32, sharding=sharding.batch_sharding(mesh)
    )
    start = time.time()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), record_choices() as choices:
        state = abstract_state(model, optimizer, mesh)
        step = jax.jit(make_train_step(model, optimizer, schedule), donate_argnums=0)
        lowered = step.lower(state, {"tokens": tokens})
        compiled = lowered.compile()
    kernels = set(re.findall(r'kernel_name = "(\w+)"', lowered.as_text()))
    memory = compiled.memory_analysis()
    return {
        "model": name,
        "slice": SLICES.get(topology, topology),
        "chips": len(devices),
        "T": length,
        "implementation": " ".join(sorted(set.union(*choices.values()))),
        "kernels": " ".join(sorted(kernels)),
        "state GiB": round(memory.argument_size_in_bytes / 2**30, 2),
        "temporaries GiB": round(memory.temp_size_in_bytes / 2**30, 2),
        "compile s": round(time.time() - start),
    }


def main(
    models: tuple[str, ...] = MODELS,
    topologies: tuple[str, ...] = tuple(SLICES),
    length: int = 16384,
    name: str = "tpu_steps",
) -> None:
    """Compile, print and write `results/NAME.csv`.

    Args:
        models: registered names.
        topologies: slices as the TPU compiler names them.
        length: tokens of a sequence.
        name: of the file.
    """
    rows = []
    for topology in topologies:
        for model in models:
            rows.append(compile_step(model, topology, length))
            print(*rows[-1].values(), sep="  ", flush=True)
            header = [f"command: {command()}", *machine_facts()]
            write_csv(RESULTS / f"{name}.csv", rows, header)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
