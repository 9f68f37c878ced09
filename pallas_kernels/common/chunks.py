"""Cutting sequences into chunks, and the decays inside and across them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def scan_chunks(
    step: Callable[..., tuple[Any, Array]], state: Any, size: int, *arrays: Array | None
) -> tuple[Array, Any]:
    """The step from chunk to chunk, as in `jax.lax.scan`: the result and the last state.

    For its backward pass only the states before the chunks are kept. So the temporaries are those
    of a single chunk, small enough for a CPU's cache.

    Args:
        step: (state, *chunks) -> (state, y); arrays are [B,C,...], C = `size`.
        arrays: [B,T,...], of which the steps get zeros after the end; None stays None.

    Returns:
        y [B,T,...] and the state.
    """
    batch, length = next(x for x in arrays if x is not None).shape[:2]

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -length % size), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(batch, -1, size, *x.shape[2:]), 1, 0)

    body = jax.checkpoint(lambda state, chunks: step(state, *chunks), prevent_cse=False)
    state, y = jax.lax.scan(body, state, jax.tree.map(split, arrays))
    y = jnp.moveaxis(y, 0, 1)
    return y.reshape(batch, -1, *y.shape[3:])[:, :length], state


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


def decays(g: Float[Array, "*B C"]) -> Decays:
    """Decays from g, the logarithm of each token's own: -inf where a document starts.

    Every exponent is a sum over just the tokens between, never a difference of two sums from the
    start: that would cancel where the decay is strong, and let one document's gates change the
    rounding of another's.
    """
    pairs, from_start = _pair_decays(g), jnp.exp(jnp.cumsum(g, axis=-1))
    return Decays(pairs, from_start, pairs[..., -1, :], from_start[..., -1])


_LEAF = 8  # below this, a table of sums is faster than putting halves together


def _pair_decays(g: Float[Array, "*B C"]) -> Float[Array, "*B C C"]:
    """exp(g_{j+1} + ... + g_i), zero for j > i.

    In halves: between them it is what the later one leaves from its start, times what the earlier
    one leaves at its end.
    """
    size = g.shape[-1]
    if size <= _LEAF or size % 2:
        later = np.tri(size, k=-1, dtype=bool)
        sums = jnp.cumsum(jnp.where(later, g[..., :, None], 0), axis=-2)
        # The mask comes before exp, so that neither it nor its gradient overflows.
        return jnp.exp(jnp.where(np.tri(size, dtype=bool), sums, -jnp.inf))
    halves = g.reshape(*g.shape[:-1], 2, size // 2)
    inside = _pair_decays(halves)
    earlier, later = inside[..., 0, :, :], inside[..., 1, :, :]
    from_start = jnp.exp(jnp.cumsum(halves[..., 1, :], axis=-1))
    across = from_start[..., :, None] * earlier[..., -1:, :]
    return jnp.block([[earlier, jnp.zeros_like(across)], [across, later]])
