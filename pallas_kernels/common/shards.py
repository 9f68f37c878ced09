"""What devices of a divided sequence get of the tokens before theirs, inside `shard_map`."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped


def past_neighbour(x: Shaped[Array, "B T ..."], axis_name: str) -> Shaped[Array, "B S ..."]:
    """The tokens of the device before, zeros on the first one, and then this device's: S = 2 T."""
    pairs = [(i, i + 1) for i in range(lax.axis_size(axis_name) - 1)]
    return jnp.concatenate([lax.ppermute(x, axis_name, pairs), x], axis=1)


def gather_past(x: Shaped[Array, "B T ..."], axis_name: str) -> Shaped[Array, "B S ..."]:
    """All tokens up to this device's, which come last, after zeros: S = n T on every device."""
    length, later = x.shape[1], lax.axis_size(axis_name) - 1 - lax.axis_index(axis_name)
    everything = lax.all_gather(x, axis_name, axis=1, tiled=True)
    everything = jnp.roll(everything, later * length, axis=1)
    is_past = jnp.arange(everything.shape[1]) >= later * length
    return jnp.where(is_past.reshape(-1, *[1] * (x.ndim - 2)), everything, 0)
