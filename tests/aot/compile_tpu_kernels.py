"""Compiles the screening kernels for one TPU with none attached; prints what they need as JSON.

python -m tests.aot.compile_tpu_kernels v5e 4096 bfloat16
"""

import json
import sys

import jax.numpy as jnp

from experiments.bench.compile_tpu import rows_of


def main(chip: str, length: str, dtype: str) -> None:
    print("rows", json.dumps(list(rows_of(chip, int(length), 16, 16, 64, jnp.dtype(dtype)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
