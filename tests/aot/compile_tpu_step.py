"""Prints what a decoded token of the log-linear 800M models moves on a TPU that is not there.

python -m tests.aot.compile_tpu_step v5e
"""

import json
import sys

from experiments.bench.compile_tpu_decode import row_of


def main(chip: str) -> None:
    models = ("Mamba-2 800M", "GDN 800M")
    print("rows", json.dumps([row_of(chip, model, 8, "pallas_tpu") for model in models]))


if __name__ == "__main__":
    main(sys.argv[1])
