"""`from_torch` and `to_torch`: one table, read in either direction."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from multiscreen_jax.convert.checks import (
    check_module,
    check_state_dict,
    check_tree,
    config_sizes,
    layer_names,
)
from multiscreen_jax.convert.layout import join_tensor, shape_of, split_tensor
from multiscreen_jax.convert.plan import Tensor, our_shapes, tensors_of
from multiscreen_jax.convert.sources import table_for, table_named
from multiscreen_jax.models.conversion import Source, holds

_ALIGNMENT = 64  # bytes


def from_torch(source: str, state_dict: Mapping[str, Any], config: Any) -> dict:
    """Our parameter tree from a PyTorch state dict.

    Args:
        source: one of `sources()`; `describe(source)` says which settings of the model the
            weights do not carry. Or "native": our own names and layouts.
        state_dict: names to numpy arrays, jax arrays or torch tensors of any device and float
            dtype (bfloat16 included).
        config: the model's config, of the class that belongs to the source.

    Returns:
        A nested dict of jax arrays in `config.param_dtype`, layers stacked on a leading axis.
        For "multiscreen/paper" the map is linear: gradients keyed by parameter names convert as
        parameters do. For the other Multiscreen sources it is linear as well (the acceptance
        parameter changes sign, and so does its gradient). For "transformer/hf-llama" it is with
        `final_norm_gain=True`.

    Raises:
        ValueError: an unknown source; or a wrong, missing or extra tensor. All are named, with
            the shape given and the shape expected.
        TypeError: a config of another class, or a state dict that is no mapping.

    Costs, besides the result, one stacked parameter in host memory; on CPU not even that, as the
    result is filled in place.
    """
    table = table_for(source, config)
    check_state_dict(table, state_dict, config)
    dtype = _parameter_dtype(config)
    _check_values(table, state_dict, config)
    leaves = {}
    # All layers of one row before the next row, so that few arrays are unfinished at a time.
    for _, tensors in itertools.groupby(tensors_of(table, config), lambda tensor: tensor.row):
        stacks = {}
        for tensor in tensors:
            for path, piece in zip(tensor.paths, _pieces(tensor, state_dict), strict=True):
                if path not in stacks:
                    stacks[path] = _aligned(our_shapes(config)[path], dtype)
                stacks[path][... if tensor.layer is None else tensor.layer] = piece
        leaves |= {tuple(path.split("/")): jax.device_put(x) for path, x in stacks.items()}
    return traverse_util.unflatten_dict(leaves)


def module_from_torch(source: str, state_dict: Mapping[str, Any], config: Any, prefix: str) -> dict:
    """A part of one layer's tree from the state dict of one PyTorch module, say an attention.

    Args:
        source, config: as of `from_torch`.
        state_dict: the module's own, names without the prefix.
        prefix: what the module is called in the whole model, such as "model.layers.0.self_attn.".

    Returns:
        The layer's tree as far as the module has it, such as {"attention": {...}}, not stacked.

    Raises:
        ValueError, TypeError: as `from_torch`.
    """
    table = table_for(source, config)
    whole = {prefix + name: tensor for name, tensor in state_dict.items()}
    within = [tensor for tensor in tensors_of(table, config) if tensor.name.startswith(prefix)]
    check_module(table, within, whole)
    dtype, leaves = _parameter_dtype(config), {}
    for tensor in within:
        for path, piece in zip(tensor.row.parts, _pieces(tensor, whole), strict=True):
            leaves[tuple(path.split("/"))] = jnp.asarray(piece, dtype)
    return traverse_util.unflatten_dict(leaves)


def _pieces(tensor: Tensor, state_dict: Mapping[str, Any]) -> list[np.ndarray]:
    """Our arrays out of one tensor."""
    held = host_array(state_dict[tensor.name])
    pieces = split_tensor(held, tensor.row.axes, list(tensor.row.parts.values()), tensor.sizes)
    return pieces if tensor.row.sign > 0 else [-piece for piece in pieces]


def _parameter_dtype(config: Any) -> np.dtype:
    dtype = jnp.dtype(config.param_dtype)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"config.param_dtype={config.param_dtype!r} needs "
            'jax.config.update("jax_enable_x64", True) first'
        )
    return dtype


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array where JAX on CPU wants it, so that it is taken over and not copied."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def to_torch(source: str, params: Mapping[str, Any], config: Any) -> dict[str, np.ndarray]:
    """A PyTorch state dict, as numpy arrays, from our parameter tree: `from_torch` backwards.

    Arrays keep their dtype, except that bfloat16, which numpy and torch cannot exchange, comes
    out as float32 (exactly). Each is a fresh array, ready for `torch.from_numpy`, and the whole
    is what `load_state_dict` wants, buffers and tied copies included. Linear where `from_torch`
    is: a tree of gradients converts as parameters do ("multiscreen/paper" always).

    Raises:
        ValueError: an unknown source; or a wrong, missing or extra array in `params`, all named.
        TypeError: a config of another class.
    """
    arrays = named_arrays(table_for(source, config), params, config)
    return {
        name: x.astype(np.float32) if x.dtype == jnp.bfloat16 else x for name, x in arrays.items()
    }


def trained_length(source: str, state_dict: Mapping[str, Any]) -> int | None:
    """The longest length seen in training, where the source keeps it in a buffer; else None.

    "multiscreen/lucidrains" does. In its eval mode windows beyond that length are infinite: set
    `trained_length` of the config to this number and `infinite_windows=True` for the same logits.
    """
    return _length_of(table_named(source), state_dict)


def _length_of(table: Source, state_dict: Mapping[str, Any]) -> int | None:
    lengths = set()
    for buffer in table.lengths:
        layer = 0
        while (name := buffer.name.format(layer=layer)) in state_dict:
            lengths.add(int(host_array(state_dict[name])))
            layer += 1
    return max(lengths, default=0) or None


def named_arrays(table: Source, params: Mapping[str, Any], config: Any) -> dict[str, np.ndarray]:
    """Torch names and layouts for a checked tree, every array in its own dtype."""
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be a nested dict of arrays, got {type(params).__name__}")
    leaves = traverse_util.flatten_dict(dict(params), sep="/")
    check_tree(table, leaves, config)
    out = {}
    for tensor in tensors_of(table, config):
        axes = list(tensor.row.parts.values())
        parts = [np.asarray(leaves[path]) for path in tensor.paths]
        parts = parts if tensor.layer is None else [part[tensor.layer] for part in parts]
        joined = join_tensor(parts, tensor.row.axes, axes, tensor.sizes)
        out[tensor.name] = joined if tensor.row.sign > 0 else np.negative(joined, out=joined)
    for copy in table.copies:
        if holds(copy.when, config):
            out[copy.name] = out[copy.of].copy()
    for constant in table.constants:
        if holds(constant.when, config):
            out[constant.name] = np.full(
                shape_of(constant.axes, config_sizes(table, config)),
                constant.value,
                jnp.dtype(config.param_dtype),
            )
    for buffer in table.lengths:
        for name in layer_names(buffer.name, config.num_layers):
            out[name] = np.asarray(config.trained_length or 0, np.int64)
    return out


def host_array(tensor: Any) -> np.ndarray:
    """A numpy array of a torch tensor, jax array or numpy array; torch's bfloat16 as float32."""
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    tensor = tensor.detach().cpu()
    # torch's names of dtypes that numpy lacks: bfloat16 and the float8 family
    if any(kind in str(tensor.dtype) for kind in ("bfloat16", "float8")):
        tensor = tensor.float()
    return tensor.numpy()


def _check_values(table: Source, state_dict: Mapping[str, Any], config: Any) -> None:
    """Tensors that we do not keep must say what our config says."""
    for copy in table.copies:
        if not holds(copy.when, config) or copy.name not in state_dict:
            continue
        if not np.array_equal(host_array(state_dict[copy.name]), host_array(state_dict[copy.of])):
            raise ValueError(
                f"{table.name}: {copy.name} differs from {copy.of}, but config."
                f"{copy.when[0]}={copy.when[1]}"
            )
    for constant in table.constants:
        if not holds(constant.when, config):
            continue
        if not np.all(host_array(state_dict[constant.name]) == constant.value):
            raise ValueError(
                f"{table.name}: {constant.name} is not {constant.value} everywhere: "
                f"{constant.advice}"
            )
    length = _length_of(table, state_dict)
    if length and config.infinite_windows and config.trained_length != length:
        raise ValueError(
            f"{table.name}: trained on lengths up to {length} (its length buffers), but "
            f"config.trained_length={config.trained_length} with infinite_windows=True"
        )
