"""Chips with their published peaks, and slices of them: "v5p:4x8x8", "h100:1x8"."""

import dataclasses
import importlib.util
import math
import re
from typing import Any

from experiments.bench import gpu_compiler
from multiscreen_jax.fields import unknown_name


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a roofline needs of a chip; per chip and second, bytes unless said otherwise.

    TPU numbers are those of Google's pages on each generation, GPU numbers NVIDIA's data sheets.
    """

    platform: str
    flops: float  # bfloat16 products with float32 sums, dense
    memory: int
    bandwidth: float  # of that memory
    links: float  # what one chip sends to all its neighbours together
    axes: int  # of the slice's shape
    network: float = math.inf  # what one GPU sends to other nodes, by its own adapter

    @property
    def usable(self) -> int:
        """Memory that a program gets."""
        return int(GPU_POOL * self.memory) if self.platform == "gpu" else self.memory


GIB = 2**30
# The share of a GPU's memory that JAX takes at its start, its default (XLA_CLIENT_MEM_FRACTION).
GPU_POOL = 0.75
CHIPS = {
    "v5e": Chip("tpu", 197e12, 16 * GIB, 819e9, 200e9, 2),
    "v5p": Chip("tpu", 459e12, 95 * GIB, 2765e9, 600e9, 3),
    "v6e": Chip("tpu", 918e12, 32 * GIB, 1640e9, 400e9, 2),
    "a100": Chip("gpu", 312e12, 80 * 10**9, 2039e9, 300e9, 2, 25e9),
    "h100": Chip("gpu", 989e12, 80 * 10**9, 3352e9, 450e9, 2, 50e9),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice; of GPUs the shape is (nodes, GPUs of a node)."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def nodes(self) -> int:
        """Parts that only a slower network joins."""
        return self.shape[0] if self.chip.platform == "gpu" else 1

    def devices(self) -> list[Any]:
        """The compiler's descriptions of its chips.

        Raises:
          ValueError: the compiler does not know a slice of this shape, or is not installed.
        """
        try:
            if self.chip.platform == "tpu":
                from experiments.aot import libtpu  # which sets what the compiler reads

                return libtpu.devices(self.name)
            return gpu_compiler.devices(
                {"a100": 80, "h100": 90}[self.name.split(":")[0]], *self.shape
            )
        except Exception as error:  # whatever a plugin raises
            reason = _missing(self.chip.platform) or str(error).strip().splitlines()[0]
            raise ValueError(f"no compiler for topology {self.name!r}: {reason}") from None


def _missing(platform: str) -> str | None:
    """What to install of a compiler that is not there."""
    if platform == "gpu":
        return gpu_compiler.missing()
    found = importlib.util.find_spec("libtpu") is not None
    return None if found else "needs the TPU compiler: pip install -e '.[aot]'"


def parse_topology(name: str) -> Topology:
    """The topology of a name such as "v5e:16x16".

    Raises:
      ValueError: an unknown chip, or a shape that is none.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise unknown_name("chip", kind, CHIPS)
    chip = CHIPS[kind]
    if not re.fullmatch("x".join(["[1-9][0-9]*"] * chip.axes), shape):
        example = "x".join(["4"] * chip.axes) if chip.platform == "tpu" else "1x8"
        raise ValueError(f"topology is {name!r}; allowed: {chip.axes} sizes, as {kind}:{example}")
    return Topology(name, chip, tuple(map(int, shape.split("x"))))
