"""The decode kernels compile for TPUs and GPUs without spills or copies of the cache."""

import pytest

from tests.aot import compile_decode
from tests.aot.run_compiler import need_gpu_compiler, need_tpu_compiler, run_compiler
from tests.marks import slow_unless


def _lines(target):
    printed = run_compiler("compile_decode", target).splitlines()
    lines = [line.split() for line in printed if line.startswith(target)]
    assert len(lines) == len(compile_decode.CASES)
    return lines


def _number(line, name):
    return float(line[line.index(name) + 1])


@pytest.mark.parametrize(
    "target", slow_unless((), ("v5e", "v5p", "v6e"), exhaustive=("v5p", "v6e"))
)
def test_tpu(target):
    need_tpu_compiler()
    for line in _lines(target):  # fails if a register is spilled
        # Buffers are read as they lie: a transposed or padded copy would be as large as they are.
        assert _number(line, "temp_mib") < 1
        assert _number(line, "cache_mib") < 700


@pytest.mark.parametrize("target", slow_unless((), ("sm_80", "sm_90"), exhaustive=("sm_80",)))
def test_gpu(target):
    need_gpu_compiler()
    for line in _lines(target):  # fails if a register is spilt
        assert _number(line, "temp_mib") < 8  # the programs' own sums
