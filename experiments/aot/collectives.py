"""What the chips of a compiled step say to each other, with loops multiplied out."""

import itertools
import math
import re
from collections import defaultdict
from dataclasses import dataclass

from experiments.aot import hlo

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

    @property
    def sent(self) -> float:
        """Bytes that one chip sends per run if they go round a ring, the least there is."""
        if self.kind == "collective-permute":
            return self.bytes
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.bytes * (self.chips - 1) / self.chips


def collectives(
    module: hlo.Module, chips: int, choose: hlo.Choice | None = None
) -> list[Collective]:
    """Every collective of a program for `chips` chips in which more than one takes part.

    Args:
      choose: the branch that a conditional takes, as in `hlo.executions`.
    """
    counts, _ = hlo.executions(module, choose)
    found = {}
    for name, times in counts.items():
        for instruction in module.computations[name].values():
            if instruction.opcode.removesuffix("-start") in KINDS:
                one = _collective(instruction, module.computations[name], chips, times)
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
    instruction: hlo.Instruction, computation: dict[str, hlo.Instruction], chips: int, times: int
) -> Collective:
    kind = instruction.opcode.removesuffix("-start")
    given = sum(
        size for name in instruction.operands for size, _ in hlo.arrays(computation[name].shape)
    )
    together = _group(instruction.attributes, chips)
    source = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return Collective(
        kind=kind,
        shape=_result(instruction),
        chips=together,
        bytes=given * together if kind == "all-gather" else given,
        times=times,
        source=source[1] if source else "",
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


def _group(attributes: str, chips: int) -> int:
    """How many chips exchange with each other, from `replica_groups` in any of its notations."""
    if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])  # a part of an axis: its size
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return match[1].count(",") + 1
    return chips
