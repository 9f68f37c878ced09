"""Initial values by role: a model's rule for all matrices, as a value.

A role is mostly the parameter's name. "output" and "down" write to the residual stream, along their
last axis; all others read it.
"""

import dataclasses

import flax.linen as nn

from multiscreen_jax.layers.branch import Initializer
from multiscreen_jax.values import Value

WRITES = ("output", "down")


class Init(Value):
    """A rule of initial values; a frozen dataclass derives from it."""

    def __call__(self, role: str, shape: tuple[int, ...]) -> Initializer:
        """The initialiser of a parameter, `init(key, shape, dtype)`."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")


@dataclasses.dataclass(frozen=True)
class Normal(Init):
    """Normal numbers of standard deviation `reads`, and `writes` where the stream is written."""

    reads: float
    writes: float

    def __call__(self, role: str, shape: tuple[int, ...]) -> Initializer:
        del shape
        return nn.initializers.normal(self.writes if role in WRITES else self.reads)


@dataclasses.dataclass(frozen=True)
class NormalAndUniform(Init):
    """Normal numbers of standard deviation `reads`; what writes is U(-b, b).

    b = 1 / sqrt(fan_in) / sqrt(branches): PyTorch's own for a linear layer, divided by the root of
    the number of branches that write.
    """

    reads: float
    branches: int

    def __call__(self, role: str, shape: tuple[int, ...]) -> Initializer:
        if role not in WRITES:
            return nn.initializers.normal(self.reads)
        return nn.initializers.variance_scaling(
            1 / (3 * self.branches), "fan_in", "uniform", in_axis=tuple(range(len(shape) - 1)),
            out_axis=-1,
        )  # fmt: skip
