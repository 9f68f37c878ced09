"""FLOPs of the recurrent ops in chunk form, per layer and sequence (a multiply-add counts two).

T tokens, H heads, K and V, chunks of C. Elementwise work (decays, gates) is not counted.
"""

import math

CHUNK = 64  # the ops' own


def ssd_flops(length: int, heads: int, groups: int, key_dim: int, value_dim: int) -> float:
    """Scores once for each group, their product with the values, states written and read."""
    chunk = min(CHUNK, length)
    scores = groups * chunk * key_dim
    return 2 * length * (scores + heads * (chunk * value_dim + 2 * key_dim * value_dim))


def delta_flops(length: int, heads: int, key_dim: int, value_dim: int) -> float:
    """Two C x C products, the triangular inverse, three products with keys or queries, two with
    values, and three with the state."""
    return (
        2
        * length
        * heads
        * (_delta_chunk_flops(length, key_dim, value_dim) + 3 * key_dim * value_dim)
    )


def log_linear_ssd_flops(
    length: int, heads: int, groups: int, key_dim: int, value_dim: int
) -> float:
    """`ssd_flops` with, on average, half of the log2(T / C) levels above a chunk to read."""
    chunk = min(CHUNK, length)
    scores = groups * chunk * key_dim
    states = key_dim * value_dim * (1 + math.log2(max(1, length / chunk)) / 2)
    return 2 * length * (scores + heads * (chunk * value_dim + states))


def log_linear_delta_flops(length: int, heads: int, key_dim: int, value_dim: int) -> float:
    """`delta_flops` with a state for every level above a chunk."""
    levels = math.ceil(math.log2(max(1, length / CHUNK))) + 1
    return (
        2
        * length
        * heads
        * (_delta_chunk_flops(length, key_dim, value_dim) + 3 * key_dim * value_dim * levels)
    )


def _delta_chunk_flops(length: int, key_dim: int, value_dim: int) -> float:
    """Multiply-adds per token inside a chunk."""
    chunk = min(CHUNK, length)
    return chunk * chunk / 3 + chunk * (chunk + 4 * key_dim + 2 * value_dim)
