"""The training step of a config, traced and compiled for a slice that is not attached."""

import functools
import math
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from multiscreen_jax import sharding
from multiscreen_jax.layers.parameters import facts_of
from multiscreen_jax.models.registry import build
from multiscreen_jax.train.config import ExperimentConfig, resolved
from multiscreen_jax.train.optimizer import make_optimizer
from multiscreen_jax.train.state import TrainState, abstract_state
from multiscreen_jax.train.step import experiment_step, jit_step
from pallas_kernels.common.dispatch import record_choices


@dataclass(frozen=True)
class Trace:
    """A step before compilation: arrays are ShapeDtypeStructs with their shardings."""

    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    traced: Any  # of jax.jit: has .jaxpr and .lower()
    implementations: dict[str, set[str]]  # of every op


@dataclass(frozen=True)
class Memory:
    """Bytes of one chip."""

    arguments: int
    outputs: int
    aliased: int  # outputs that take the place of arguments
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclass(frozen=True)
class Program:
    """A compiled step: its memory and its optimized HLO as text."""

    memory: Memory
    text: str
    seconds: float  # that compilation took


@dataclass(frozen=True)
class TooLarge:
    """What the compiler says where a step does not fit; bytes of one chip."""

    needed: int
    allowed: int
    message: str


def trace_step(config: ExperimentConfig, mesh: Mesh) -> Trace:
    """The step of a run with this config on this mesh; nothing is computed.

    Raises:
      ValueError: the batch does not divide over the mesh.
    """
    config = resolved(config)
    rows = config.data.batch_size // config.train.accumulate
    sharding.check_batch(rows, config.data.sequence_length, mesh)
    shape = (config.data.batch_size, config.data.sequence_length + 1)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding.batch_sharding(mesh))
    names = ("tokens", "segment_ids") if config.data.packing == "segments" else ("tokens",)
    batch = dict.fromkeys(names, tokens)
    # Ops ask this mesh which chips they are for.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), record_choices() as choices:
        model = build(config.model)
        optimizer = make_optimizer(config.optim, config.train.steps, facts_of(model))
        init_carry = functools.partial(config.objective.init_carry, model, config.data.batch_size)
        state = abstract_state(model, optimizer, mesh, init_carry)
        traced = jit_step(experiment_step(config), state, mesh).trace(state, batch)
    return Trace(state, batch, traced, choices)


def compile_step(trace: Trace, mesh: Mesh) -> Program | TooLarge:
    """Compiled with the compiler of the mesh's chips; takes minutes for large models."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            lowered = trace.traced.lower()
        try:
            compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return too_large(str(error), bytes_of_a_chip((trace.state, trace.batch)))
        text = _optimized_text(compiled, Path(folder))
    found = compiled.memory_analysis()
    memory = Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        found.generated_code_size_in_bytes,
    )
    return Program(memory, text, time.perf_counter() - start)


_USED = r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"
_TEMPORARIES = r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"


def too_large(message: str, arguments: int) -> TooLarge:
    """Reads the refusal of the TPU compiler: of all it needs, or of temporaries beside arguments.

    Args:
      arguments: bytes of them on one chip.
    """
    everything, temporaries = re.search(_USED, message), re.search(_TEMPORARIES, message)
    match = everything or temporaries
    if match is None:
        return TooLarge(0, 0, message.splitlines()[0])
    units = {unit: 2 ** (10 * power) for power, unit in enumerate("KMGT", 1)}
    needed, allowed = (int(float(match[i]) * units[match[i + 1]]) for i in (1, 3))
    return TooLarge(needed if everything else needed + arguments, allowed, match[0])


def bytes_of_a_chip(tree: Any) -> int:
    """Of arrays with shardings, the part of one chip, without padding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _optimized_text(compiled: Any, folder: Path) -> str:
    """From the files that the TPU compiler writes: JAX cannot read all its programs back."""
    for path in folder.glob("*jit_step*after_codegen.txt"):
        return path.read_text()
    return compiled.as_text()
