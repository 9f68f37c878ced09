"""Block sizes of the GPU kernels."""

from typing import NamedTuple

import jax.numpy as jnp


class Block(NamedTuple):
    queries: int
    keys: int
    warps: int
    stages: int


class BlockSizes(NamedTuple):
    forward: Block
    queries: Block
    keys: Block


def block_sizes(arch, dtype, key_dim, value_dim) -> BlockSizes:
    if key_dim not in (8, 16, 32, 64, 128) or value_dim not in (32, 64, 128):
        raise NotImplementedError(f"K, V {key_dim} {value_dim}")
    return BlockSizes(Block(64, 64, 4, 2), Block(64, 64, 4, 2), Block(64, 64, 4, 2))
