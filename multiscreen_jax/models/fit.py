"""Whether parameters are those of a model: one line with the first that is not."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from multiscreen_jax.cache import shapes


def check_model(model: Any) -> None:
    """ValueError for what is no language model of this library."""
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or not hasattr(config, "vocab_size"):
        raise ValueError(f"model must be a language model, got {type(model).__name__}")


def check_params(model: nn.Module, params: Any) -> None:
    """ValueError unless `params` has the names and shapes that the model's `init` gives."""
    check_tree(params)
    kind = type(model).__name__
    needed, given = needed_shapes(model.clone(parent=None)), shapes(params)
    for name, shape in needed.items():
        if name not in given:
            other = next((f"; they have {x}" for x in given if x not in needed), "")
            raise ValueError(
                f"params are not those of this {kind}: {name} {shape} is missing{other}"
            )
        if given[name] != shape:
            raise ValueError(
                f"params are not those of this {kind}: {name} must be {shape}, got {given[name]}"
            )
    for name in given.keys() - needed.keys():
        raise ValueError(f"params are not those of this {kind}: it has no {name}")


def check_tree(params: Any) -> None:
    """ValueError for what are no parameters at all."""
    if not isinstance(params, Mapping):
        raise ValueError(f"params must be a dict of arrays, got {type(params).__name__}")
    if set(params) == {"params"}:
        raise ValueError(
            'params must be the parameters themselves, got {"params": ...}; allowed: the inner '
            'tree, variables["params"]'
        )


def count_parameters(model: nn.Module) -> int:
    """Numbers in all parameters of a language model; nothing is computed."""
    return sum(math.prod(shape) for shape in needed_shapes(model).values())


@functools.lru_cache(maxsize=256)
def needed_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """{"layers.mixer.query": shape} of every parameter that the model's `init` makes."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return shapes(jax.eval_shape(model.init, jax.random.key(0), tokens)["params"])
