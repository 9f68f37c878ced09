"""Cutting sequences into chunks, and the decays inside and across them."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def to_chunks(x: Float[Array, "B T *H"], size: int) -> Float[Array, "..."]:
    """[B,T,H,X] -> [B,H,N,C,X] (and [B,T,H] -> [B,H,N,C]), zeros after the end."""
    batch, length = x.shape[:2]
    count = -(-length // size)
    x = jnp.pad(x, ((0, 0), (0, count * size - length), *[(0, 0)] * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 3, 1)


def from_chunks(x: Float[Array, "B H N C X"], length: int) -> Float[Array, "B T H X"]:
    """The inverse of `to_chunks`."""
    x = jnp.moveaxis(x, 1, 3)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def chunk_documents(index: Int[Array, "B T"], size: int) -> Int[Array, "B N C"]:
    """Document numbers by chunk; the last one goes on after the end."""
    batch, length = index.shape
    index = jnp.pad(index, ((0, 0), (0, -length % size)), mode="edge")
    return index.reshape(batch, -1, size)


class Decays(NamedTuple):
    """What is left of a state or a token, in [0, 1], for a chunk of C tokens.

    Attributes:
        pairs: [..., C, C], of token j when token i reads it; zero for j > i and between documents.
        from_start: [..., C], of the state before the chunk when token i reads it.
        to_end: [..., C], of token j after the chunk.
        through: [...], of the state before the chunk, after it.
    """

    pairs: Array
    from_start: Array
    to_end: Array
    through: Array


def chunk_decays(
    g: Float[Array, "B *H N C"] | None, documents: Int[Array, "B N C"] | None, size: int
) -> Decays:
    """Decays from g, the logarithm of each token's own; None is no decay.

    Every exponent is a sum over just the tokens between, never a difference of two sums from the
    start: that would cancel where the decay is strong, and let one document's gates change the
    rounding of another's. Masks come before `exp`, so that neither it nor its gradient overflows.

    The state before the first chunk belongs to document 0.
    """
    if g is None:
        g = jnp.zeros((1, 1, 1, size), jnp.float32)
    later = np.tri(size, k=-1, dtype=bool)
    log_pairs = jnp.cumsum(jnp.where(later, g[..., :, None], 0), axis=-2)
    log_start = jnp.cumsum(g, axis=-1)
    visible = np.tri(size, dtype=bool)
    if documents is not None:
        visible = visible & (documents[..., :, None] == documents[..., None, :])[:, None]
        before = jnp.pad(documents[:, :-1, -1], ((0, 0), (1, 0)))
        log_start = jnp.where((documents == before[..., None])[:, None], log_start, -jnp.inf)
    pairs = jnp.exp(jnp.where(visible, log_pairs, -jnp.inf))
    from_start = jnp.exp(log_start)
    return Decays(pairs, from_start, pairs[..., -1, :], from_start[..., -1])
