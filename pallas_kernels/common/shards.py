"""What devices of a divided sequence get of each other's tokens, inside `shard_map`."""

from typing import TypeVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

Tokens = TypeVar("Tokens")


def from_before(x: Tokens, axis_name: str) -> Tokens:
    """Arrays of the device before; zeros on the first one."""
    return lax.ppermute(x, axis_name, [(i, i + 1) for i in range(lax.axis_size(axis_name) - 1)])


def around(x: Tokens, axis_name: str, steps: int) -> Tokens:
    """Arrays of the device so many steps before, the last one being before the first."""
    size = lax.axis_size(axis_name)
    return lax.ppermute(x, axis_name, [(i, (i + steps) % size) for i in range(size)])


def gather_past(x: Shaped[Array, "B T ..."], axis_name: str) -> Shaped[Array, "B S ..."]:
    """All tokens up to this device's, which come last, after zeros: S = n T on every device."""
    length, later = x.shape[1], lax.axis_size(axis_name) - 1 - lax.axis_index(axis_name)
    everything = lax.all_gather(x, axis_name, axis=1, tiled=True)
    everything = jnp.roll(everything, later * length, axis=1)
    is_past = jnp.arange(everything.shape[1]) >= later * length
    return jnp.where(is_past.reshape(-1, *[1] * (x.ndim - 2)), everything, 0)
