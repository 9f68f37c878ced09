"""Bytes that a compiled step moves to and from one chip's memory, with loops multiplied out.

Every instruction reads its operands and writes its result once, which is what the schedule of an
optimized program does. A slice of a larger array, or an update of one in place, counts the slice;
what lies in on-chip memory counts nothing. What a kernel reads twice is counted once.
"""

from experiments.aot import hlo
from experiments.aot.collectives import KINDS

# They name, group or wait for what other instructions moved.
_FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "iota", "optimization-barrier",
    "async-start",
)  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
# In a fusion: arrays that go through it as they are, among them those of a collective that goes on
# beside its work, which counts where it starts.
_PASSING = ("parameter", "tuple", *KINDS)


def memory_bytes(module: hlo.Module, choice: hlo.Choice | None = None) -> float:
    """Bytes of one chip and one step; `choice` as in `hlo.executions`."""
    counts, _ = hlo.executions(module, choice)
    fused = {
        name
        for computation in module.computations.values()
        for instruction in computation.values()
        if instruction.opcode == "fusion"
        for name in instruction.called("calls")
    }
    return sum(
        times * _moved(module, module.computations[name], instruction)
        for name, times in counts.items()
        if name not in fused
        for instruction in module.computations[name].values()
    )


def _moved(
    module: hlo.Module, computation: dict[str, hlo.Instruction], instruction: hlo.Instruction
) -> float:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
        return 0
    if opcode.endswith("-start"):  # (source, target, flags): each once
        return _size(instruction.shape)
    if opcode in _SLICES:
        return 2 * _size(instruction.shape)
    operands = [computation[name].shape for name in instruction.operands]
    if opcode == "dynamic-update-slice":
        return 2 * _size(operands[1])
    if opcode != "fusion":
        return sum(map(_size, operands)) + _size(instruction.shape)
    (called,) = instruction.called("calls")
    body = module.computations[called]
    read = sum(min(_size(shape), _read(body, number)) for number, shape in enumerate(operands))
    root = next(x for x in body.values() if x.root)
    return read + min(_size(instruction.shape), _written(body, root))


def _size(shape: str) -> float:
    """Bytes of the arrays that lie in the chip's main memory."""
    return sum(size for size, layout in hlo.arrays(shape) if "S(" not in layout)


def _whole(shape: str) -> float:
    return sum(size for size, _ in hlo.arrays(shape))


def _read(body: dict[str, hlo.Instruction], number: int) -> float:
    """What a fusion reads of its parameter of this number."""
    name = next(
        x.name for x in body.values() if x.opcode == "parameter" and x.arguments == str(number)
    )
    total = 0.0
    for user in body.values():
        if name not in user.operands or user.opcode in _PASSING:
            continue
        if user.opcode in _SLICES and user.operands[0] == name:
            total += _whole(user.shape)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
            return float("inf")
    return total


def _written(body: dict[str, hlo.Instruction], result: hlo.Instruction) -> float:
    """What a fusion writes of a result: of an update in place the part that changes."""
    if result.opcode == "tuple":
        return sum(_written(body, body[name]) for name in result.operands)
    if result.opcode == "bitcast":
        return _written(body, body[result.operands[0]])
    if result.opcode == "dynamic-update-slice":
        return _whole(body[result.operands[1]].shape)
    return 0 if result.opcode in _PASSING else _size(result.shape)
