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
    states = 3 * key_dim * value_dim
    return 2 * length * heads * (_delta_chunk_flops(length, key_dim, value_dim) + states)


def log_linear_ssd_flops(
    length: int, heads: int, groups: int, key_dim: int, value_dim: int
) -> float:
    """`ssd_flops` with, on average, half of the log2(T / C) levels above a chunk to read."""
    chunk = min(CHUNK, length)
    scores = groups * chunk * key_dim
    states = key_dim * value_dim * (1 + math.log2(max(1, length / chunk)) / 2)
    return 2 * length * (scores + heads * (chunk * value_dim + states))


def log_linear_delta_flops(length: int, heads: int, key_dim: int, value_dim: int) -> float:
    """Products inside chunks, what each chunk writes and erases, and for every level above a chunk
    its state handed on through half of the chunks, and read by them."""
    levels = math.log2(max(1, length / CHUNK))
    chunks = key_dim * (value_dim + key_dim) if levels else 0
    states = levels * key_dim * value_dim * (1 + key_dim / CHUNK) / 2
    return 2 * length * heads * (_delta_chunk_flops(length, key_dim, value_dim) + chunks + states)


def _delta_chunk_flops(length: int, key_dim: int, value_dim: int) -> float:
    """Multiply-adds per token inside a chunk."""
    chunk = min(CHUNK, length)
    return chunk * chunk / 3 + chunk * (chunk + 4 * key_dim + 2 * value_dim)
