"""Compiles a few of the screening kernels' sizes for a GPU with no GPU attached.

python -m tests.aot.compile_gpu 80
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

from experiments.bench.compile_gpu import compile_screening, faults

# dtype, K, V, heads, length, documents, gap
CALLS = (
    ("bfloat16", 16, 64, 64, 131072, False, False),
    ("bfloat16", 128, 128, 16, 4001, True, False),
    ("bfloat16", 16, 64, 16, 4001, True, True),
    ("float32", 16, 64, 16, 4096, False, False),
    ("float32", 8, 32, 16, 4001, True, False),
    ("float32", 16, 64, 16, 4096, False, True),
)


def main(arch: int) -> None:
    for call in CALLS:
        kernels, program = compile_screening(arch, *call, refuse_spills=True)
        found = faults(kernels, program)
        if arch == 90 and call[0] == "bfloat16" and not kernels["forward"].wgmma:
            found.append("forward has no warpgroup instruction")
        if found:
            raise SystemExit(f"{call}: {'; '.join(found)}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
