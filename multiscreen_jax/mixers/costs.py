"""FLOPs of the recurrent ops in chunk form, per layer and sequence (a multiply-add counts two).

T tokens, H heads, K and V, chunks of C. Elementwise work (decays, gates) is not counted.
"""

import math

CHUNK = 64  # the ops' own
BLOCK = 8  # chunks, see `pallas_kernels.log_linear.tree`


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
    """`ssd_flops` with the states of the levels above a chunk to read."""
    states = key_dim * value_dim * (_levels_read(length) - 1)
    return ssd_flops(length, heads, groups, key_dim, value_dim) + 2 * length * heads * states


def log_linear_delta_flops(length: int, heads: int, key_dim: int, value_dim: int) -> float:
    """Products inside chunks; where there are several, what each writes and erases, these maps
    merged pair by pair, and the states of the levels above a chunk to read."""
    merged = min(math.log2(max(1, length / CHUNK)), math.log2(BLOCK))
    maps = key_dim * (value_dim + key_dim) * (1 + key_dim / CHUNK) if merged else 0
    states = key_dim * (value_dim * _levels_read(length) + key_dim * merged / 2)
    return 2 * length * heads * (_delta_chunk_flops(length, key_dim, value_dim) + maps + states)


def _levels_read(length: int) -> float:
    """Above a chunk, on average over the tokens: the other half is empty."""
    return math.log2(max(1, length / CHUNK)) / 2


def _delta_chunk_flops(length: int, key_dim: int, value_dim: int) -> float:
    """Multiply-adds per token inside a chunk."""
    chunk = min(CHUNK, length)
    return chunk * chunk / 3 + chunk * (chunk + 4 * key_dim + 2 * value_dim)
