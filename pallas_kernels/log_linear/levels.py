"""The Fenwick partition of a prefix into levels, and what happens beyond the last of them.

Token t reads the tokens before it in buckets, one for every set bit i of t, of 2^i tokens each, the
larger the further back. The bucket of bit i is level i + 1, and the token itself level 0:

    level(t, s) = bit_length(t xor s)          s <= t

(Log-Linear Attention, arXiv:2506.04761, section 3.1.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

BEYOND_LEVELS = ("error", "clamp", "extend")


class LogLinearState(NamedTuple):
    """The state after a token, one matrix a level; at most log2(length) + 1 of them are not zero.

    Attributes:
        levels: [B,H,L,K,V]; level 0 holds the last token alone.
        length: [B], tokens of the document so far.
    """

    levels: Float[Array, "B H L K V"]
    length: Int[Array, " B"]


def empty_state(
    batch: int, heads: int, levels: int, key_dim: int, value_dim: int, dtype: jnp.dtype
) -> LogLinearState:
    """The state before the first token: B H L K V zeros."""
    shape = (batch, heads, levels, key_dim, value_dim)
    return LogLinearState(jnp.zeros(shape, dtype), jnp.zeros(batch, jnp.int32))


def level_count(length: int) -> int:
    """Levels that a document of this length needs: ceil(log2(length)) + 1."""
    return (length - 1).bit_length() + 1


def bit_length(x: Int[Array, "*N"]) -> Int[Array, "*N"]:
    """Digits of x >= 0 in base two."""
    return 32 - jax.lax.clz(jnp.asarray(x, jnp.int32))


def level_table(size: int, levels: int) -> np.ndarray:
    """level(i, j) of two tokens of one chunk, int32 [C,C]; the last level holds all beyond it."""
    i, j = np.indices((size, size))
    return np.minimum(np.frexp((i ^ j).astype(np.float64))[1], levels - 1).astype(np.int32)


def merge_masks(
    index: Int[Array, "*B"], levels: int
) -> tuple[Bool[Array, "*B L"], Bool[Array, "*B L"]]:
    """(which levels are emptied, which one takes their sum) before token `index` is written.

    Levels 0 to z, z the number of trailing zeros of `index`, become level z + 1; the last level
    keeps what it holds.
    """
    level = jnp.arange(levels)
    zeros = (bit_length(index & -index) - 1)[..., None]
    some = (index > 0)[..., None]
    return some & (level <= jnp.minimum(zeros, levels - 2)), some & (
        level == jnp.minimum(zeros + 1, levels - 1)
    )


def merge(levels: Float[Array, "B H L K V"], index: Int[Array, " B"]) -> Float[Array, "B H L K V"]:
    """The levels as token `index` finds them: its own, level 0, is empty."""
    emptied, target = (x[:, None, :, None, None] for x in merge_masks(index, levels.shape[2]))
    total = jnp.sum(jnp.where(emptied, levels, 0), axis=2, keepdims=True)
    return jnp.where(emptied, 0, levels) + jnp.where(target, total, 0)


def pair_scales(scales: Float[Array, "*B C L"]) -> Float[Array, "*B C C"]:
    """scales[i, level(i, j)] for the tokens j <= i of a chunk; what lies above is meaningless."""
    size, levels = scales.shape[-2:]
    table = level_table(size, levels)
    pairs = jnp.broadcast_to(scales[..., :1], (*scales.shape[:-1], size))
    for level in range(1, int(table.max()) + 1):
        pairs = jnp.where(table == level, scales[..., level : level + 1], pairs)
    return pairs
