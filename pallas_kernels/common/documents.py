"""Packed documents, as recurrent ops see them: where a state starts anew."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


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


def gates(
    g: Float[Array, "B T H"] | None, docs: Documents | None, like: Float[Array, "B T ..."]
) -> Float[Array, "B T H"]:
    """g, the logarithms of decays, with -inf where a document starts but a row's first.

    Without g nothing else decays, and one head [B,T,1] stands for all.
    """
    if g is None:
        g = jnp.zeros((*like.shape[:2], 1), like.dtype)
    return g if docs is None else jnp.where(document_starts(docs)[..., None], -jnp.inf, g)


def document_starts(docs: Documents) -> Bool[Array, "B T"]:
    """Where a document starts, but for a row's first, which goes on with the initial state."""
    return jnp.diff(docs.index, axis=1, prepend=0) != 0
