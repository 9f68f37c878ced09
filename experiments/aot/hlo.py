"""Reading the text of a compiled program: its instructions, and how often each one runs.

XLA writes a loop's body once. `executions` multiplies it out: by `known_trip_count` where the
compiler wrote one down, else by what the loop's condition and body say (TPU programs). Loops count
up from zero, as all do that JAX's scans and XLA's own passes make.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16, "token": 0}
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_ARRAY = re.compile(r"([a-z]+[a-z0-9]*)\[([\d,<=]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"\b(body|calls|to_apply|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclass(frozen=True)
class Instruction:
    """One line: `%name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str  # the operands as they are written
    attributes: str
    root: bool

    def called(self, *kinds: str) -> list[str]:
        """Names of the computations in attributes of these kinds."""
        found = [(kind, names) for kind, names in _CALLED.findall(self.attributes)]
        return [n for kind, names in found if kind in kinds for n in re.findall(r"[\w.\-]+", names)]


@dataclass(frozen=True)
class Module:
    """A compiled program: computations by name, each a dict of instructions by name, in order."""

    entry: str
    computations: dict[str, dict[str, Instruction]]


def parse(text: str) -> Module:
    """The module of a text as `compiled.as_text()` gives it.

    Raises:
      ValueError: there is no entry computation in it.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = None, None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match[2], {})
            entry = match[2] if match[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError("the text holds no ENTRY computation: not an HLO module")
    return Module(entry, computations)


def _instruction(line: str) -> Instruction:
    name, rest = line.strip().split(" = ", 1)
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, rest = rest.split("(", 1)
    end = _closing("(" + rest) - 1
    arguments, attributes = rest[: end - 1], rest[end:]
    return Instruction(
        name=name.removeprefix("ROOT ").removeprefix("%"),
        shape=shape,
        opcode=opcode,
        operands=tuple(re.findall(r"%([\w.\-]+)", arguments)),
        arguments=arguments,
        attributes=attributes,
        root=name.startswith("ROOT "),
    )


def _closing(text: str) -> int:
    """Index after the parenthesis that closes the one at the start."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def arrays(shape: str) -> Iterator[tuple[int, str]]:
    """(bytes, layout) of every array in a shape, tuples included; padding is not counted."""
    for kind, dims, layout in _ARRAY.findall(shape):
        count = math.prod(int(re.sub(r"\D", "", dim)) for dim in dims.split(",") if dim)
        width = BYTES.get(kind)
        if width is None:  # f32, s8, f8e4m3fn, ...
            width = int(re.search(r"\d+", kind)[0]) / 8  # pyright: ignore[reportOptionalSubscript]
        yield math.ceil(count * width), layout


class Choice(NamedTuple):
    """What a program does that only decides it as it runs."""

    branch: Callable[[list[str]], str]  # that a conditional takes
    longest: bool = False  # whether loops run as often as their conditions allow


def executions(module: Module, choice: Choice | None = None) -> tuple[Counter[str], list[str]]:
    """(how often each computation runs in one step, names of loops whose length is not known).

    The body of such a loop counts once, or as often as it can if `choice` says so. Of a conditional
    the branch counts that `choice` names; without it every branch, as if it were taken.
    Computations inside a fusion run as often as it does; those of a reduction (an addition, say)
    are left out.
    """
    counts: Counter[str] = Counter()
    unknown = []

    def visit(name: str, times: int) -> None:
        counts[name] += times
        for instruction in module.computations[name].values():
            if instruction.opcode == "while":
                trips = trip_count(module, name, instruction)
                if not trips.exact:
                    unknown.append(instruction.name)
                    if not (choice and choice.longest):
                        trips = Trips(1, False)
                for body in instruction.called("body"):
                    visit(body, times * trips.most)
            elif instruction.opcode == "conditional":
                taken = branches(instruction)
                for branch in taken if choice is None else [choice.branch(taken)]:
                    visit(branch, times)
            elif instruction.opcode in ("call", "fusion", "async-start"):
                for called in instruction.called("to_apply", "calls"):
                    visit(called, times)

    visit(module.entry, 1)
    return counts, unknown


def branches(conditional: Instruction) -> list[str]:
    """The computations of which a conditional runs one."""
    return conditional.called("branch_computations", "true_computation", "false_computation")


class Trips(NamedTuple):
    """How often a while loop's body runs at most, 1 where the text does not tell."""

    most: int
    exact: bool


def trip_count(module: Module, where: str, loop: Instruction) -> Trips:
    """Of a loop in computation `where`."""
    if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return Trips(int(match[1]), True)
    condition, body = (
        module.computations[re.search(rf"\b{kind}=%?([\w.\-]+)", loop.attributes)[1]]  # pyright: ignore
        for kind in ("condition", "body")
    )
    root = next(x for x in condition.values() if x.root)
    tests = [condition[name] for name in root.operands] if root.opcode == "and" else [root]
    for test in tests:
        most = _trips_of(module.computations[where], loop, condition, test, body)
        if most is not None:
            return Trips(most, test is root)
    return Trips(1, False)


def _trips_of(around, loop, condition, test, body) -> int | None:
    """After which a counter has reached a constant; None if this is no test of that."""
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter, limit = (condition[name] for name in test.operands)
    index, end = _carried(counter), _constant(limit)
    result = next(x for x in body.values() if x.root)
    if index is None or end is None or result.opcode != "tuple":
        return None
    step = _step(body, body[result.operands[index]], index)
    return None if step is None else -(-(end - _start(around, loop, index)) // step)


def _start(around: dict[str, Instruction], loop: Instruction, index: int) -> int:
    """Where a counter starts, part `index` of a loop's state: 0 unless the text tells."""
    state = _original(around, around[loop.operands[0]])
    if state.opcode != "tuple":
        return 0
    return _constant(_original(around, around[state.operands[index]])) or 0


def _carried(instruction: Instruction) -> int | None:
    """Which part of the loop's state an instruction takes out of it."""
    match = re.search(r"\bindex=(\d+)", instruction.attributes)
    return int(match[1]) if instruction.opcode == "get-tuple-element" and match else None


def _constant(instruction: Instruction) -> int | None:
    is_number = instruction.opcode == "constant" and re.fullmatch(r"\d+", instruction.arguments)
    return int(instruction.arguments) if is_number else None


def _step(body: dict[str, Instruction], new: Instruction, index: int) -> int | None:
    """What the body adds to the counter, part `index` of its state."""
    new = _original(body, new)
    if new.opcode != "add":
        return None
    terms = [_original(body, body[name]) for name in new.operands]
    steps = [_constant(x) for x in terms if _constant(x)]
    return steps[0] if len(steps) == 1 and index in map(_carried, terms) else None


def _original(body: dict[str, Instruction], instruction: Instruction) -> Instruction:
    """What was copied, if the instruction is a copy."""
    while instruction.opcode in ("copy", "copy-start", "copy-done"):
        instruction = body[instruction.operands[0]]
    return instruction
