"""Functions of (model, params, ...), compiled once per model and kept."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec

from multiscreen_jax.models.fit import check_params


def jitted(function: Callable, model: nn.Module, params: Any) -> Callable:
    """A jitted `function(model, ...)` with the model bound; the same object on every call.

    So a training loop may ask for it at every step without compiling again. Where `params` are
    placed on a mesh the results are on all its devices, so that each process can read them.
    """
    check_params(model, params)
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return _jitted(function, model, mesh)


@functools.lru_cache(maxsize=64)
def _jitted(function: Callable, model: nn.Module, mesh: Any) -> Callable:
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(functools.partial(function, model), out_shardings=whole)
