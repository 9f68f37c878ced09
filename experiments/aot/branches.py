"""Which branch of a conditional is taken, and how often a loop runs, where the program decides that
as it runs.

So does screening of divided sequences: by the windows, devices get the keys of the device before
theirs, or of more. A least time needs the branch that costs least, of links and memory each by
itself, since one branch may send less and another move less.
"""

from collections.abc import Callable

from experiments.aot import hlo
from experiments.aot.collectives import collectives
from experiments.aot.traffic import memory_bytes

Best = Callable[..., str]  # min or max


def by_sent(best: Best, module: hlo.Module, chips: int) -> hlo.Choice:
    """The branches in which a chip sends the fewest (min) or the most (max) bytes."""

    def cost(inside: hlo.Module) -> float:
        return sum(x.times * x.sent for x in collectives(inside, chips, choice))

    choice = _choice(best, module, cost)
    return choice


def by_traffic(best: Best, module: hlo.Module) -> hlo.Choice:
    """The branches in which a chip's memory moves the fewest (min) or the most (max) bytes."""

    def cost(inside: hlo.Module) -> float:
        return memory_bytes(inside, choice)

    choice = _choice(best, module, cost)
    return choice


def count(module: hlo.Module, choice: hlo.Choice) -> int:
    """How many conditionals of the program run at least once in a step."""
    counts, _ = hlo.executions(module, choice)
    return sum(
        x.opcode == "conditional" for name in counts for x in module.computations[name].values()
    )


def _choice(best: Best, module: hlo.Module, cost: Callable[[hlo.Module], float]) -> hlo.Choice:
    def branch(branches: list[str]) -> str:
        return best(branches, key=lambda name: cost(hlo.Module(name, module.computations)))

    return hlo.Choice(branch, longest=best is max)
