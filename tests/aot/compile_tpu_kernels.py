"""Compiles the screening kernels for one TPU with none attached; prints what they need as JSON.

python -m tests.aot.compile_tpu_kernels v5e 4096 bfloat16 16 64
"""

import json
import sys

import jax.numpy as jnp

from experiments.bench.compile_tpu import rows_of


def main(chip: str, length: str, dtype: str, key_dim: str, value_dim: str) -> None:
    rows = rows_of(chip, int(length), 16, int(key_dim), int(value_dim), jnp.dtype(dtype))
    print("rows", json.dumps(list(rows)))


if __name__ == "__main__":
    main(*sys.argv[1:])
