"""Which tensors a source has for a config, and which of our arrays each of them holds."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from multiscreen_jax.convert.layout import elementary_sizes, shape_of
from multiscreen_jax.models.conversion import Row, Source, holds
from multiscreen_jax.models.fit import needed_shapes
from multiscreen_jax.models.registry import build
from multiscreen_jax.models.trunk import layer_places


@dataclass(frozen=True)
class Tensor:
    """One tensor of a source.

    Attributes:
        name: of the tensor.
        row: of the table.
        paths: of the arrays that it holds, in the row's order.
        layer: the index of its layer in these arrays; None where they are not stacked.
        sizes: length of every letter of the row's layouts.
    """

    name: str
    row: Row
    paths: tuple[str, ...]
    layer: int | None
    sizes: Mapping[str, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.row.axes, self.sizes)


@functools.lru_cache(maxsize=64)
def our_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters of a model, by path."""
    with jax.enable_x64(True):  # shapes alone: float64 parameters have them too
        needed = needed_shapes(build(config))
    return {name.replace(".", "/"): shape for name, shape in needed.items()}


@functools.lru_cache(maxsize=64)
def tensors_of(table: Source, config: Any) -> tuple[Tensor, ...]:
    """All tensors that hold arrays of ours, row by row.

    Raises:
        ValueError: arrays that no tensor holds, since the source has no such layers.
    """
    ours = our_shapes(config)
    places = layer_places(config.stages())
    found = []
    for row in table.rows:
        if not holds(row.when, config):
            continue
        layered = "{layer}" in row.name
        for number, (prefix, layer) in enumerate(places if layered else [("", None)]):
            paths = tuple(prefix + part for part in row.parts)
            if all(path in ours for path in paths):
                shapes = [ours[path][layered:] for path in paths]
                sizes = elementary_sizes(row.parts.values(), shapes)
                found.append(Tensor(row.name.format(layer=number), row, paths, layer, sizes))
    left = ours.keys() - {path for tensor in found for path in tensor.paths}
    if left:
        raise ValueError(
            f"source {table.name!r} has no counterpart of {', '.join(sorted(left)[:3])}"
            f"{f' and {len(left) - 3} more' if len(left) > 3 else ''}"
        )
    return tuple(found)
