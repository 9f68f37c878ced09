"""What the chips of a compiled step say to each other, with loops multiplied out."""

import itertools
import re
from collections import defaultdict
from dataclasses import dataclass

from experiments.aot import hlo
from experiments.aot.groups import groups

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """One instruction; bytes are those of one chip and one run of it."""

    kind: str
    shape: str  # of its result
    chips: int  # that take part together
    bytes: int  # of the largest side: what is gathered, reduced, scattered or passed on
    times: int  # runs per step
    source: str  # the operation of the model that asked for it
    nodes: int = 1  # of GPUs, that the chips which take part together belong to

    @property
    def sent(self) -> float:
        """Bytes that one chip sends per run if they go round a ring, the least there is."""
        if self.kind == "collective-permute":
            return self.bytes
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.bytes * (self.chips - 1) / self.chips

    @property
    def crossing(self) -> float:
        """Bytes that one chip sends per run to other nodes, if all of its node share in it.

        What a node needs of the others comes in once.
        """
        if self.nodes == 1:
            return 0
        if self.kind == "collective-permute":
            return self.bytes
        if self.kind == "all-to-all":
            return self.bytes * (self.nodes - 1) / self.nodes
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.bytes * (self.nodes - 1) / self.chips


def collectives(
    module: hlo.Module, chips: int, choice: hlo.Choice | None = None, nodes: int = 1
) -> list[Collective]:
    """Every collective of a program for `chips` chips in which more than one takes part.

    Args:
      choice: what is decided at run time, as in `hlo.executions`.
      nodes: that the chips belong to, as many to each, one node's after the other's.
    """
    counts, _ = hlo.executions(module, choice)
    found = {}
    for name, times in counts.items():
        for instruction in module.computations[name].values():
            if instruction.opcode.removesuffix("-start") in KINDS:
                one = _collective(instruction, module.computations[name], chips, times, nodes)
                key = _spread(instruction.attributes) or (name, instruction.name)
                if key not in found or times < found[key].times:
                    found[key] = one
    return [one for one in found.values() if one.chips > 1]


def _spread(attributes: str) -> str | None:
    """The channel of a collective that the TPU compiler spreads over other work.

    Its start, its end and pieces inside loops are written as one collective each, all on one
    channel; it runs as often as the start does.
    """
    match = re.search(r"channel_id=(\d+)", attributes)
    return match[0] if match and "async_collective_fusion_config" in attributes else None


def by_kind(found: list[Collective]) -> dict[str, tuple[int, float, float]]:
    """kind -> (runs, bytes, bytes sent) per chip and step, in the order of `KINDS`."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0])
    for one in found:
        for place, value in enumerate((1, one.bytes, one.sent)):
            sums[one.kind][place] += one.times * value
    return {kind: (int(sums[kind][0]), *sums[kind][1:]) for kind in KINDS if kind in sums}


def _collective(
    instruction: hlo.Instruction,
    computation: dict[str, hlo.Instruction],
    chips: int,
    times: int,
    nodes: int,
) -> Collective:
    kind = instruction.opcode.removesuffix("-start")
    given = sum(
        size for name in instruction.operands for size, _ in hlo.arrays(computation[name].shape)
    )
    together = groups(instruction.attributes, chips)
    members = chips if kind == "collective-permute" else together.shape[1]
    spread = max(len(set(group)) for group in (together // (chips // nodes)).tolist())
    source = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return Collective(
        kind=kind,
        shape=_result(instruction),
        chips=members,
        bytes=given * members if kind == "all-gather" else given,
        times=times,
        source=source[1] if source else "",
        nodes=spread,
    )


def _result(instruction: hlo.Instruction) -> str:
    """Arrays of the result; of an asynchronous one without what else its tuple holds."""
    found = re.findall(r"[a-z]+\d*\[[\d,]*\]", instruction.shape)
    if instruction.opcode == "collective-permute-start":
        found = found[1:2]
    elif instruction.opcode in ("all-gather-start", "reduce-scatter-start", "all-to-all-start"):
        found = found[len(found) // 2 :]
    groups = [(shape, len(list(same))) for shape, same in itertools.groupby(found)]
    return ", ".join(f"{count} x {shape}" if count > 1 else shape for shape, count in groups)
