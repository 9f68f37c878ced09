"""Packed documents, as recurrent ops see them: where a state starts anew."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Documents(NamedTuple):
    """The documents of every row.

    Attributes:
        index: 0 for the first document of a row, 1 for the next, ...; padding carries the number
            of the document before it.
        real: False for padding.
    """

    index: Int[Array, "B T"]
    real: Bool[Array, "B T"]


def documents(segment_ids: Int[Array, "B T"]) -> Documents:
    """A document starts where the id differs from that of the last token that is not padding."""
    real = segment_ids != 0
    here = jnp.where(real, jnp.arange(segment_ids.shape[1]), -1)
    last = jax.lax.cummax(here, axis=1)
    before = jnp.pad(last[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    previous = jnp.take_along_axis(segment_ids, jnp.maximum(before, 0), axis=1)
    starts = real & ((before < 0) | (segment_ids != previous))
    index = jnp.cumsum(starts, axis=1, dtype=jnp.int32) - 1
    return Documents(jnp.maximum(index, 0), real)


def mask_padding(real: Bool[Array, "B T"] | None, *arrays: Array) -> tuple[Array, ...]:
    """The arrays [B,T,...], zero at padding: such a token writes nothing and decays nothing."""
    if real is None:
        return arrays
    return tuple(jnp.where(real.reshape(*real.shape, *[1] * (x.ndim - 2)), x, 0) for x in arrays)
