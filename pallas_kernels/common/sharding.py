"""Running an op on every device's own rows and heads.

XLA cannot look into a Pallas kernel, and does not see that a loop over heads may be divided, so ops
are mapped by hand: batch and heads are independent in all of them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

# Letters in `shard_op` -> axes of the mesh, as in `multiscreen_jax.sharding`; those a mesh lacks do
# not count.
MESH_AXES = {"b": ("data", "fsdp"), "h": ("model",)}


def shard_op(
    op: Callable[..., Any],
    in_axes: Sequence[str],
    out_axes: str | tuple[str, ...],
    *arrays: jax.Array | None,
) -> Any:
    """op(*arrays), inside `shard_map` if a mesh of several devices is set.

    An axis that its mesh axes do not divide evenly stays whole, and is computed on all of them.
    Gradients of whole inputs (a window, when the batch is divided) are summed over the devices.

    Args:
        op: treats batch rows and heads independently.
        in_axes, out_axes: a letter an axis, e.g. "b.h." for [B,T,H,K]: b batch, h heads, . whole.
            `out_axes` is a tuple where the op returns one.
        arrays: None stays None.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = {
        name: mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != AxisType.Manual
    }
    if math.prod(free.values()) == 1:  # no mesh, one device, or inside shard_map already
        return op(*arrays)
    sizes: dict[str, set[int]] = {letter: set() for letter in MESH_AXES}
    for axes, array in zip(in_axes, arrays, strict=True):
        if array is not None:
            for letter, size in zip(axes, array.shape, strict=True):
                sizes.setdefault(letter, set()).add(size)
    placed = {}
    for letter, names in MESH_AXES.items():
        names = tuple(name for name in names if name in free)
        parts = math.prod(free[name] for name in names)
        placed[letter] = names if all(size % parts == 0 for size in sizes[letter]) else None

    def spec(axes: str) -> PartitionSpec:
        return PartitionSpec(*(placed.get(letter) for letter in axes))

    # None has no leaves, so its spec may be anything.
    return jax.shard_map(
        op,
        in_specs=tuple(spec(axes) for axes in in_axes),
        out_specs=jax.tree.map(spec, out_axes),
        axis_names=set(free),
        check_vma=False,
    )(*arrays)
