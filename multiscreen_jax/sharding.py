"""Which device holds what: a mesh, and one table.

    layers.parameters   logical axes of a parameter, named where it is made
    LogicalAxes         logical axis -> mesh axes

Mesh axes: `data` (copies of the model), `fsdp` (shares of parameters and optimizer state, the
batch is divided over these too), `seq` (shares of a sequence: activations alone), `model` (shares
of heads, feed-forward width and vocabulary). Where there are experts to divide, a mesh also has
`expert`: shares of them, and the batch is divided over it. A mesh axis that does not divide an
array's axis leaves that axis whole. Nothing here touches a device before `make_mesh`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "seq", "model")
WITH_EXPERTS = ("data", "fsdp", "expert", "seq", "model")


@dataclasses.dataclass(frozen=True)
class LogicalAxes:
    """Logical axis -> the mesh axes it is divided over (None: kept whole)."""

    batch: tuple[str, ...] | None = ("data", "fsdp", "expert")
    tokens: tuple[str, ...] | None = ("seq",)
    layers: tuple[str, ...] | None = None
    vocabulary: tuple[str, ...] | None = ("model",)
    embed: tuple[str, ...] | None = ("fsdp",)
    heads: tuple[str, ...] | None = ("model",)
    key_heads: tuple[str, ...] | None = ("model",)
    key: tuple[str, ...] | None = None
    value: tuple[str, ...] | None = None
    level: tuple[str, ...] | None = None
    tap: tuple[str, ...] | None = None
    feed_forward: tuple[str, ...] | None = ("model",)
    expert: tuple[str, ...] | None = ("expert",)
    gain: tuple[str, ...] | None = None


def divide_cpu(devices: int) -> None:
    """Makes `devices` devices of the CPU; must come before JAX touches any device.

    An op that runs on one core at a time keeps several busy this way, each with its own rows.

    Raises:
      ValueError: JAX is already running with another number.
    """
    if devices == 1 or jax.config.jax_num_cpu_devices == devices:
        return
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        raise ValueError(
            f"mesh.cpu_devices is {devices}, but JAX already runs with {jax.device_count()} "
            "devices; set it before anything else uses JAX"
        ) from None


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    seq: int = 1,
    model: int = 1,
    devices: Sequence[Any] | None = None,
    *,
    expert: int = 1,
) -> Mesh:
    """A mesh over all devices; -1 (once) takes what the other axes leave.

    Devices of several TPU slices, which only a slower network joins, are divided over `data`, and
    over `fsdp` if those are too few: parameters are gathered and sequences exchanged inside slices.

    Args:
      devices: all of JAX's by default.
      expert: more than 1 gives the mesh this axis; otherwise it has none.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or data x fsdp do not divide
        over the slices.
    """
    axes = MESH_AXES if expert == 1 else WITH_EXPERTS
    sizes = [data, fsdp, seq, model] if expert == 1 else [data, fsdp, expert, seq, model]
    devices = jax.devices() if devices is None else devices
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = max(1, len(devices) // known)
    shape = ", ".join(f"mesh.{axis} {size}" for axis, size in zip(axes, sizes, strict=True))
    if math.prod(sizes) != len(devices):
        more = "; --mesh.cpu-devices N makes N of a CPU" if devices[0].platform == "cpu" else ""
        raise ValueError(
            f"{shape}: the product must be the number of devices, {len(devices)}{more}"
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    over_data = math.gcd(sizes[0], slices)
    if sizes[1] % (slices // over_data):
        raise ValueError(f"{shape}: data and fsdp must divide over {slices} slices")
    across = (over_data, slices // over_data, *[1] * (len(axes) - 2))
    inside = [size // parts for size, parts in zip(sizes, across, strict=True)]
    # An axis of the mesh may be a part of one of the torus, as 4 of the 16 of a v6e.
    split = {"allow_split_physical_axes": True}
    if slices == 1:
        grid = mesh_utils.create_device_mesh(inside, devices, **split)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(inside, across, devices, **split)
    return Mesh(grid, axes, axis_types=(AxisType.Auto,) * len(axes))


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree path as 'layers/tiles/query'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def parameter_shardings(params: Any, facts: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every parameter of a tree of arrays or ShapeDtypeStructs.

    Args:
      facts: those of every parameter, as `layers.parameters.facts_of` gives them.
    """
    return jax.tree.map(
        lambda leaf, its: NamedSharding(mesh, partition(its.axes, leaf.shape, mesh)), params, facts
    )


def partition(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes."""
    pairs = zip(axes, shape, strict=True)
    return PartitionSpec(*(_divides(mesh, axis, size) or None for axis, size in pairs))


def _divides(mesh: Any, axis: str | None, size: int) -> tuple[str, ...]:
    """The axes of a mesh that a logical axis of this size is divided over; () leaves it whole."""
    names = tuple(name for name in mesh_axes(axis) if name in mesh.shape)
    parts = _parts(mesh, names)
    return names if parts > 1 and size % parts == 0 else ()


def mesh_axes(axis: str | None) -> tuple[str, ...]:
    """The mesh axes that a logical axis is divided over."""
    return (getattr(LogicalAxes(), axis) if axis is not None else None) or ()


def like_parameters(tree: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings for a tree that holds copies of the parameters' tree, as optimizer states do.

    A leaf whose path ends in a parameter's path, and has its shape, is placed like it; every other
    leaf (step counts) is on all devices.
    """
    flat_params = jax.tree_util.tree_flatten_with_path(params)[0]
    known = {
        path_name(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(flat_params, jax.tree.leaves(shardings), strict=True)
    }

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        for start in range(len(path)):
            shape, sharding = known.get(path_name(path[start:]), (None, None))
            if sharding is not None and shape == leaf.shape:
                return sharding
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are divided over `data` and `fsdp`; devices of `seq` have whole rows, since
    tokens are few bytes and inputs and targets begin at different ones."""
    rows = tuple(name for name in mesh_axes("batch") if name in mesh.shape)
    return NamedSharding(mesh, PartitionSpec(rows))


def activation_axes(batch: int, length: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The mesh axes that rows and tokens of activations [B, T, ...] are divided over.

    None, that is (), where no mesh is set, inside shard_map, and where they do not divide.
    """
    mesh = _our_mesh()
    if mesh is None:
        return (), ()
    return _divides(mesh, "batch", batch), _divides(mesh, "tokens", length)


def shard_activations(x: jax.Array) -> jax.Array:
    """Keeps x [B, T, ...] divided over rows and tokens alone, as LogicalAxes says; inside jit.

    Without it the compiler may prefer the layout of a parameter that was just used and gather the
    whole batch on every device. Does nothing where no mesh is set and inside shard_map. An axis
    that does not divide is left to the compiler.
    """
    if _our_mesh() is None:
        return x
    axes = [names or PartitionSpec.UNCONSTRAINED for names in activation_axes(*x.shape[:2])]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def gather_features(rows: jax.Array) -> jax.Array:
    """A table [O, D] to look tokens up in, with whole rows on every device where that is better.

    What is looked up in parts of rows is divided over D, and changes places to be divided over
    tokens: one all-to-all if only fsdp divides either, but beside seq or model the compiler would
    copy all of it to every device.
    """
    mesh = _our_mesh()
    if mesh is None or mesh.shape["seq"] * mesh.shape["model"] == 1:
        return rows
    return jax.lax.with_sharding_constraint(rows, PartitionSpec(PartitionSpec.UNCONSTRAINED, None))


def even_rows(table: jax.Array) -> jax.Array:
    """A table [O, D] of the vocabulary with rows of zeros, so that `model` divides it.

    Vocabularies are seldom multiples of anything, as 50257 of GPT-2's tokens. The table as it is
    where a mesh divides its rows, or has none to divide them.
    """
    mesh = _our_mesh()
    names = LogicalAxes().vocabulary
    missing = 0 if mesh is None else -table.shape[0] % _parts(mesh, names)
    if not missing:
        return table
    padded = jnp.pad(table, [(0, missing), (0, 0)])
    return jax.lax.with_sharding_constraint(
        padded, PartitionSpec(names, PartitionSpec.UNCONSTRAINED)
    )


def flat_tokens(x: jax.Array) -> jax.Array:
    """[B, T, ...] -> [B T, ...], for products that are faster so on CPUs.

    As it is where a mesh divides T: no layout has B T tokens of which a device holds parts of all
    rows, so the compiler would gather them.
    """
    _, divided = activation_axes(*x.shape[:2])
    return x if divided else x.reshape(-1, *x.shape[2:])


def _our_mesh() -> Any:
    """The mesh that is set, if it is one of ours and the compiler divides arrays over it."""
    mesh = jax.sharding.get_abstract_mesh()
    ours = not mesh.empty and mesh.axis_names in (MESH_AXES, WITH_EXPERTS)
    return mesh if ours and all(kind == AxisType.Auto for kind in mesh.axis_types) else None


def _parts(mesh: Any, names: tuple[str, ...] | None) -> int:
    return math.prod(mesh.shape.get(name, 1) for name in names or ())


def check_batch(rows: int, length: int, mesh: Mesh) -> None:
    """ValueError unless every device gets the same number of rows, and of tokens."""
    axes = [name for name in mesh_axes("batch") if name in mesh.shape]
    if rows % (parts := _parts(mesh, tuple(axes))):
        raise ValueError(
            f"data.batch-size / train.accumulate is {rows}; allowed: a multiple of "
            f"{' x '.join(f'mesh.{name}' for name in axes)}, {parts}"
        )
    if length % mesh.shape["seq"]:
        raise ValueError(
            f"data.sequence-length is {length}; allowed: a multiple of mesh.seq, "
            f"{mesh.shape['seq']}"
        )


def check_parameters(params: Any, facts: Any, mesh: Mesh) -> str | None:
    """What a user should know of parameters that a mesh does not divide evenly; None if it does.

    Args:
      params: arrays or ShapeDtypeStructs.
      facts: of every parameter, see `layers.parameters.facts_of`.

    Raises:
      ValueError: an axis of the mesh divides no parameter at all.
    """
    whole, used, total, held = {}, set(), 0, 0
    for leaf, its in zip(jax.tree.leaves(params), jax.tree.leaves(facts), strict=True):
        parts = 1
        for axis, size, divided in zip(
            its.axes, leaf.shape, partition(its.axes, leaf.shape, mesh), strict=True
        ):
            names = [name for name in mesh_axes(axis) if mesh.shape.get(name, 1) > 1]
            if divided:
                used.update(names)
                parts *= _parts(mesh, tuple(names))
            else:
                for name in names:
                    whole.setdefault(name, set()).add(f"{axis} {size}")
        total += leaf.size
        held += leaf.size // parts
    for name in ("fsdp", "expert", "model"):
        size = mesh.shape.get(name, 1)
        if size > 1 and name not in used:
            raise ValueError(
                f"mesh.{name} is {size}, which divides no parameter; allowed: a divisor of one of "
                f"{', '.join(sorted(whole.get(name, ['1'])))}"
            )
    share = held * _parts(mesh, ("fsdp", "expert", "model")) / total
    if share < 1.1:
        return None
    said = "; ".join(
        f"mesh.{name} {mesh.shape[name]} does not divide {', '.join(sorted(axes))}"
        for name, axes in whole.items()
    )
    return f"each device holds {share:.1f} times its share of the parameters: {said}"


def process_rows(rows: int, sharding: NamedSharding) -> np.ndarray:
    """Which of a batch's rows lie on this process's devices: int [n], ascending.

    Processes that hold shares of the same copy of a model hold the same rows, and where the
    processes' devices do not fill whole copies their rows overlap in part.
    """
    numbers = np.arange(rows)
    held = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([numbers[index] for index in held]))


def place_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's rows of a batch (see `process_rows`) as global arrays on the devices."""
    parts = _parts(sharding.mesh, LogicalAxes().batch)
    held = len(process_rows(parts, sharding))

    def place(local: np.ndarray) -> jax.Array:
        rows = len(local) * parts // held
        ours = process_rows(rows, sharding)

        def share(index: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = index[0].indices(rows)
            return local[slice(*np.searchsorted(ours, (first, last)))]

        return jax.make_array_from_callback((rows, *local.shape[1:]), sharding, share)

    return {name: place(local) for name, local in batch.items()}
