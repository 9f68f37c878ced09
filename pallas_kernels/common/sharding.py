"""Running an op on every device's own rows and heads, and tokens.

XLA cannot look into a Pallas kernel, and does not see that a loop over heads may be divided, so ops
are mapped by hand: batch and heads are independent in all of them. Tokens are not, so an op has
another form for those, which exchanges what is needed.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

SEQUENCE_AXIS = "seq"
# Letters in `shard_op` -> axes of the mesh, as in `multiscreen_jax.sharding`; those a mesh lacks do
# not count.
MESH_AXES = {"b": ("data", "fsdp", "expert"), "h": ("model",), "t": (SEQUENCE_AXIS,)}


def over_sequence(
    op: Callable[..., Any],
    divided: Callable[..., Any],
    in_axes: Mapping[str, str],
    out_axes: str | tuple[str, ...],
    applies: Callable[[Mapping[str, Any], int], bool] = lambda given, share: True,
) -> Callable[..., Any]:
    """`op`, and where a mesh divides sequences among several devices, `divided` in its place.

    A length that the devices do not divide evenly stays whole: every device computes the same.

    Args:
        op: the public op, which gives the result its name, signature and docstring.
        divided: takes the same arguments, arrays of a device's own tokens, and `axis_name`.
        in_axes: of the array arguments by name, letters as in `shard_op`, and t for tokens.
        out_axes: of the results. One that is None may have any.
        applies: whether `divided` takes these arguments, with so many tokens on each device;
            sequences stay whole if not.
    """
    signature = inspect.signature(op)

    @functools.wraps(op)
    def run(*args: Any, **kwargs: Any) -> Any:
        settings = dict(signature.bind(*args, **kwargs).arguments)
        shape = jnp.shape(settings["q"])
        share = _share(shape[1]) if len(shape) == 4 else None
        arrays = {
            name: jnp.asarray(settings[name]) for name in in_axes if settings.get(name) is not None
        }
        # Arrays of other ranks are for the op to refuse.
        fits = all(array.ndim == len(in_axes[name]) for name, array in arrays.items())
        if share is None or not fits or not applies(settings, share):
            return op(*args, **kwargs)
        settings = {name: value for name, value in settings.items() if name not in arrays}

        def local(*shards: jax.Array) -> Any:
            return divided(
                **dict(zip(arrays, shards, strict=True)), **settings, axis_name=SEQUENCE_AXIS
            )

        axes = [in_axes[name] for name in arrays]
        return shard_op(local, axes, out_axes, *arrays.values())

    return run


def _share(length: int) -> int | None:
    """Tokens of a device where sequences of this length are divided, outside `shard_map`."""
    parts = _free_axes().get(SEQUENCE_AXIS, 1)
    return length // parts if parts > 1 and length % parts == 0 else None


def _free_axes() -> dict[str, int]:
    """Sizes of the axes of the mesh that is set, those of a `shard_map` around left out."""
    mesh = jax.sharding.get_abstract_mesh()
    return {
        name: mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != AxisType.Manual
    }


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
        in_axes, out_axes: a letter an axis, e.g. "b.h." for [B,T,H,K]: b batch, h heads, g groups
            of heads (a single one is on every device), t tokens (of an op that exchanges what it
            needs), . whole. `out_axes` is a tuple where the op returns one.
        arrays: None stays None.
    """
    free = _free_axes()
    if math.prod(free.values()) == 1:  # no mesh, one device, or inside shard_map already
        return op(*arrays)
    in_axes = [_with_groups(*pair) for pair in zip(in_axes, arrays, strict=True)]
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


def _with_groups(axes: str, array: jax.Array | None) -> str:
    if array is None or "g" not in axes:
        return axes
    return axes.replace("g", "h" if array.shape[axes.index("g")] > 1 else ".")
