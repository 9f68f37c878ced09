"""Compiles the linear family's kernels, and a token, at the 800M models' sizes for an absent GPU.

python -m tests.aot.compile_gpu_linear 80
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

from experiments.bench import compile_gpu_decode
from experiments.bench.compile_gpu_linear import compile_kernels, faults, kernels_of, model_calls
from pallas_kernels.linear_attention import gpu_walk


def main(arch: int) -> None:
    gpu_walk.compute_capability = lambda: arch
    for model, call in model_calls():
        if "800M" not in model or call.length > 4096:
            continue
        if found := faults(kernels_of(compile_kernels(arch, call))):
            raise SystemExit(f"{model}, levels {call.levels}: {'; '.join(found)}")
    for model in ("Mamba-2 800M", "GDN 800M"):
        token = compile_gpu_decode.row_of(arch, model, 8, "pallas_gpu")
        if token["registers"] == "" or token["spill bytes"] or token["temporaries / state"] > 0.1:
            raise SystemExit(f"{model}, a decoded token: {token}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
