"""Compiles the screening kernels for one TPU with none attached; prints what they need as JSON.

python -m tests.aot.compile_tpu_kernels v5e 4096 bfloat16 16 64 [packed] [gap]
"""

import json
import sys

import jax.numpy as jnp

from experiments.bench.compile_tpu import rows_of


def main(chip: str, length: str, dtype: str, key_dim: str, value_dim: str, *more: str) -> None:
    shape = int(length), 16, int(key_dim), int(value_dim)
    rows = rows_of(chip, *shape, jnp.dtype(dtype), "packed" in more, "gap" in more)
    print("rows", json.dumps(list(rows)))


if __name__ == "__main__":
    main(*sys.argv[1:])
