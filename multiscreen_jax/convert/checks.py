"""What must agree before a conversion starts, and how what does not agree is told in one line."""

import re
from collections.abc import Mapping
from typing import Any

from multiscreen_jax.convert.layout import shape_of, spelled_shape
from multiscreen_jax.convert.plan import Tensor, our_shapes, tensors_of
from multiscreen_jax.convert.sources import tables_of
from multiscreen_jax.models.conversion import Source, holds

MAX_NAMED = 10


def config_sizes(table: Source, config: Any) -> dict[str, int]:
    """Length of every letter whose field the config has, for what no array of ours tells."""
    return {
        letter: getattr(config, field)
        for letter, field in table.fields.items()
        if hasattr(config, field)
    }


def layer_names(name: str, layers: int) -> list[str]:
    """The torch names behind a buffer's or a constant's: one per layer, or itself."""
    return [name.format(layer=i) for i in range(layers)] if "{layer}" in name else [name]


def check_state_dict(table: Source, state_dict: Mapping[str, Any], config: Any) -> None:
    """Raises one ValueError naming every wrong, missing or extra tensor (the first ten).

    Looks at names, shapes and dtypes only: nothing is copied or moved.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            "state_dict must map names to tensors (a module's .state_dict()), "
            f"got {type(state_dict).__name__}"
        )
    if config.num_layers > len(state_dict) + MAX_NAMED:  # before work for every layer
        raise ValueError(
            f"{table.name}: config.num_layers is {config.num_layers}, which {len(state_dict)} "
            "tensors cannot fill"
        )
    required, optional = _expected(table, config)
    problems = _problems(table, required, optional, state_dict)
    known = required.keys() | optional.keys()
    unnamed = [re.escape(p).replace(r"\{layer\}", r"\d+") for p in table.ignored]
    unnamed += [re.escape(buffer.name).replace(r"\{layer\}", r"\d+") for buffer in table.lengths]
    skip = re.compile("|".join(unnamed) or r"(?!)")
    extra = [name for name in state_dict if name not in known and not skip.fullmatch(str(name))]
    problems += [f"unexpected {_shown(name)} {_shape(state_dict[name])}" for name in extra]
    if problems:
        hint = _hint(table, state_dict, config, list(required), extra)
        raise ValueError(f"{table.name}: {_listed(problems)}{hint}")


def check_tree(table: Source, leaves: Mapping[str, Any], config: Any) -> None:
    """The same for a parameter tree of ours, flattened to paths."""
    expected = our_shapes(config)
    spelled = {
        path: axes if tensor.layer is None else f"n {axes}"
        for tensor in tensors_of(table, config)
        for path, axes in zip(tensor.paths, tensor.row.parts.values(), strict=True)
    }
    problems = []
    for path, shape in expected.items():
        if path not in leaves:
            problems.append(f"missing {path} {shape}")
        else:
            problem = _mismatch(leaves[path], shape, spelled[path], table)
            if problem:
                problems.append(f"{path} {problem}")
    problems += [f"unexpected {p} {_shape(x)}" for p, x in leaves.items() if p not in expected]
    if problems:
        raise ValueError(f"parameters for {table.name}: {_listed(problems)}")


def check_module(table: Source, within: list[Tensor], state_dict: Mapping[str, Any]) -> None:
    """The same as `check_state_dict` for the tensors of one module."""
    required = {tensor.name: (tensor.row.axes, tensor.shape) for tensor in within}
    problems = _problems(table, required, {}, state_dict)
    problems += [f"unexpected {name}" for name in state_dict if name not in required]
    if problems:
        raise ValueError(f"{table.name}: {_listed(problems)}")


Expected = dict[str, tuple[str, tuple[int, ...]]]


def _expected(table: Source, config: Any) -> tuple[Expected, Expected]:
    """Axes and shapes by torch name: what must be there, and what may be there."""
    sizes = config_sizes(table, config)
    required = {
        tensor.name: (tensor.row.axes, tensor.shape) for tensor in tensors_of(table, config)
    }
    for constant in table.constants:
        if holds(constant.when, config):
            shape = shape_of(constant.axes, sizes)
            for name in layer_names(constant.name, config.num_layers):
                required[name] = constant.axes, shape
    optional = {copy.name: required[copy.of] for copy in table.copies if holds(copy.when, config)}
    return required, optional


def _problems(
    table: Source, required: Expected, optional: Expected, state_dict: Mapping[str, Any]
) -> list[str]:
    missing, wrong = [], []
    for name, (axes, shape) in {**required, **optional}.items():
        if name in state_dict:
            if problem := _mismatch(state_dict[name], shape, axes, table):
                wrong.append(f"{name} {problem}")
        elif name in required:
            missing.append(f"missing {name} {shape}")
    return [*wrong, *missing]


def _shown(name: Any) -> str:
    return name if isinstance(name, str) and name.isprintable() else repr(name)


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if hasattr(value, "shape") else f"({type(value).__name__})"


def _mismatch(value: Any, shape: tuple[int, ...], axes: str, table: Source) -> str | None:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return f"is not an array but a {type(value).__name__}"
    if tuple(value.shape) != shape:
        spelled = f" = {spelled_shape(axes, table.fields)}" if shape else ""
        return f"has shape {tuple(value.shape)}, expected {shape}{spelled}"
    if "float" not in str(value.dtype):
        return f"has dtype {value.dtype}, expected a floating-point one"
    return None


def _listed(problems: list[str]) -> str:
    more = len(problems) - MAX_NAMED
    return "; ".join(problems[:MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _hint(
    table: Source,
    state_dict: Mapping[str, Any],
    config: Any,
    required: list[str],
    extra: list[str],
) -> str:
    """The likely cause, where all tensors but a few point at one."""
    names = set(state_dict)
    for other in tables_of(config):
        if other is not table and _expected(other, config)[0].keys() <= names:
            return f" (these are the names of source {other.name!r})"
    longer = [name for name in map(str, extra) if name.endswith(required[0])]
    prefixes = {name.removesuffix(required[0]) for name in longer}
    for prefix in prefixes - {""}:
        if all(prefix + name in names for name in required):
            return f" (all names begin with {prefix!r}: take it off)"
    layered = next(row.name for row in table.rows if "{layer}" in row.name)
    pattern = re.compile(re.escape(layered).replace(r"\{layer\}", r"(\d+)"))
    found = {int(match[1]) for name in names if (match := pattern.fullmatch(str(name)))}
    if found and found != set(range(config.num_layers)):
        return f" (tensors of {len(found)} layers, config.num_layers is {config.num_layers})"
    return ""
