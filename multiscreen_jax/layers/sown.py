"""Losses and metrics that modules sow on the way: by name, summed over layers.

A module adds to them with `Branch.add_loss` and `Branch.add_metric`; nothing is kept of them unless
a training objective asks.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

SOWN = ("losses", "metrics")


def sow(module: nn.Module, kind: str, name: str, value: Array) -> None:
    """Adds a scalar to the sum of this kind and name."""
    module.sow(kind, name, value, init_fn=lambda: jnp.zeros_like(value), reduce_fn=jnp.add)


def apply_and_collect(
    model: nn.Module, params: Any, *inputs: Any, **settings: Any
) -> tuple[Any, dict[str, Array], dict[str, Array]]:
    """(what `model.apply` gives, losses, metrics)."""
    out, sown = model.apply({"params": params}, *inputs, mutable=list(SOWN), **settings)
    return out, *(_by_name(sown.get(kind, {})) for kind in SOWN)


def _by_name(tree: Any) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        name = path[-1].key
        found[name] = found.get(name, 0.0) + jnp.sum(value)
    return found
