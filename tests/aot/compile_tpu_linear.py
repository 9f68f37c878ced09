"""Compiles the linear family's kernels for one TPU with none attached; prints what they need.

python -m tests.aot.compile_tpu_linear v5e "Mamba-2 800M" 4096
"""

import json
import sys

import jax.numpy as jnp

from experiments.bench.compile_tpu_linear import rows_of


def main(chip: str, model: str, length: str) -> None:
    rows = [
        row
        for levels in (False, True)
        for row in rows_of(chip, model, int(length), jnp.bfloat16, levels)
    ]
    print("rows", json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
