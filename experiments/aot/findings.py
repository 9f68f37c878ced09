"""Everything that `aot_check` finds out about one step on one slice."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh

from experiments.aot import branches, hlo
from experiments.aot.chips import Topology
from experiments.aot.collectives import Collective, collectives
from experiments.aot.flops import Flops, count, screening_formula
from experiments.aot.program import (
    Program,
    TooLarge,
    bytes_of_a_chip,
    compile_step,
    trace_step,
)
from experiments.aot.traffic import memory_bytes
from multiscreen_jax.sharding import MESH_AXES, WITH_EXPERTS, check_batch, make_mesh
from multiscreen_jax.train.config import ExperimentConfig, override


@dataclass(frozen=True)
class Findings:
    """Bytes are those of one chip, FLOPs those of all chips and one step."""

    config: ExperimentConfig
    topology: Topology
    mesh: dict[str, int]
    parameters: int
    parameter_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    implementations: dict[str, set[str]]
    formula_flops: float  # three times the model's own count of a forward pass
    model_flops: Flops  # counted, without recomputation
    executed_flops: Flops
    loop_flops: float  # by the formula, of what `model_flops` lists as not counted; forward pass
    program: Program | TooLarge
    collectives: list[Collective]
    traffic: float
    unknown_loops: list[str]
    conditionals: int  # above, of each the branch that sends least, or moves least in memory
    most_collectives: list[Collective]  # of the branches that send most
    most_traffic: float  # of those that move most

    @property
    def needed(self) -> int:
        """Memory of one chip."""
        fits = isinstance(self.program, Program)
        return self.program.memory.total if fits else self.program.needed  # pyright: ignore

    @property
    def fits(self) -> bool:
        return isinstance(self.program, Program) and self.needed <= self.topology.chip.usable

    @property
    def seconds(self) -> dict[str, float]:
        """Least time of a step by compute, memory and links, each at its published peak."""
        return self._seconds(self.collectives, self.traffic)

    @property
    def most_seconds(self) -> dict[str, float]:
        """The same for the branches of conditionals that cost most."""
        return self._seconds(self.most_collectives, self.most_traffic)

    def _seconds(self, found: list[Collective], traffic: float) -> dict[str, float]:
        chip, chips = self.topology.chip, self.topology.chips
        return {
            "compute": self.executed / chips / chip.flops,
            "memory": traffic / chip.bandwidth,
            "links": sum(
                x.times * max(x.sent / chip.links, x.crossing / chip.network) for x in found
            ),
        }

    @property
    def counted(self) -> float:
        """FLOPs of the model, recomputation left out; uncounted loops by the formula."""
        return self.model_flops.total + 3 * self.loop_flops

    @property
    def executed(self) -> float:
        """FLOPs with what the backward pass computes again."""
        again = self.config.model.remat in ("full", "dots")
        return self.executed_flops.total + (3 + again) * self.loop_flops


def check(
    config: ExperimentConfig,
    topology: Topology,
    sizes: dict[str, int],
    say: Callable[[str], None] = lambda line: None,
) -> Findings:
    """Trace and compile the step of a config; minutes and gigabytes for large models.

    Raises:
      ValueError: a mesh that is not the slice's size, or over which the batch does not divide.
    """
    mesh = make_mesh(**{"data": 1, **sizes}, devices=topology.devices())
    trace = trace_step(config, mesh)
    plain = trace_step(override(config, model={"remat": "none"}), mesh)
    rows, length = config.data.batch_size, config.data.sequence_length
    model_flops = count(plain.traced.jaxpr, screening_formula(config.model, length))
    say("traced; the compiler takes its time now")
    program = compile_step(trace, mesh)
    least, most, unknown, conditionals = ([], 0.0), ([], 0.0), [], 0
    if isinstance(program, Program):
        module, chips = hlo.parse(program.text), topology.chips
        least, most = (
            (
                collectives(module, chips, branches.by_sent(best, module, chips), topology.nodes),
                memory_bytes(module, branches.by_traffic(best, module)),
            )
            for best in (min, max)
        )
        fewest = branches.by_sent(min, module, chips)
        unknown = hlo.executions(module, fewest)[1]
        conditionals = branches.count(module, fewest)
    return Findings(
        config=config,
        topology=topology,
        mesh=dict(mesh.shape),
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trace.state.params)),
        parameter_bytes=bytes_of_a_chip(trace.state.params),
        optimizer_bytes=bytes_of_a_chip(trace.state.optimizer_state),
        batch_bytes=bytes_of_a_chip(trace.batch),
        implementations=trace.implementations,
        formula_flops=3 * rows * config.model.forward_flops(length),
        model_flops=model_flops,
        executed_flops=count(
            trace.traced.jaxpr, screening_formula(config.model, length, on_last=True)
        ),
        loop_flops=rows * _between_tokens(config) if model_flops.uncounted else 0.0,
        program=program,
        collectives=least[0],
        traffic=least[1],
        unknown_loops=unknown,
        conditionals=conditionals,
        most_collectives=most[0],
        most_traffic=most[1],
    )


def check_sizes(config: ExperimentConfig, sizes: dict[str, int], topology: Topology) -> None:
    """ValueError for a mesh that is not the slice's, or over which the batch does not divide."""
    check_mesh(sizes, topology)
    axes = WITH_EXPERTS if sizes.get("expert", 1) > 1 else MESH_AXES
    rows = config.data.batch_size // config.train.accumulate
    mesh: Any = AbstractMesh(tuple(sizes.get(axis, 1) for axis in axes), axes)
    check_batch(rows, config.data.sequence_length, mesh)


def check_mesh(sizes: dict[str, int], topology: Topology) -> None:
    """ValueError unless the sizes multiply to the slice's chips, and data x fsdp divide over nodes.

    The compiler takes GPUs of several nodes for one slice; on real ones `make_mesh` refuses this.
    """
    product, nodes = math.prod(sizes.values()), topology.nodes
    given = ",".join(f"{axis}={size}" for axis, size in sizes.items())
    if (sizes.get("data", 1) * sizes.get("fsdp", 1)) % nodes:
        raise ValueError(
            f"mesh is {given}; allowed: data x fsdp a multiple of {nodes}, the nodes of "
            f"{topology.name}: sequences and heads are divided inside nodes"
        )
    if product != topology.chips:
        raise ValueError(
            f"mesh is {given}, {product} chips; allowed: a product of {topology.chips}, "
            f"the chips of {topology.name}"
        )


def _between_tokens(config: ExperimentConfig) -> float:
    """FLOPs of a forward pass that tokens cost because there are others: attention, screening."""
    model, length = config.model, config.data.sequence_length
    return model.forward_flops(length) - length * model.forward_flops(1)
