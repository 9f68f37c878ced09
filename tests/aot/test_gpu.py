"""The GPU kernels compile with the real compiler, within registers, onto the tensor cores."""

import subprocess
import sys

import pytest

from experiments.bench.gpu_compiler import missing


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
def test_screening_compiles(arch):
    if reason := missing():
        pytest.skip(reason)
    run = subprocess.run(
        [sys.executable, "-m", "tests.aot.compile_gpu", str(arch)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-2000:]
