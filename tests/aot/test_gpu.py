"""The GPU kernels compile with the real compiler, within registers, onto the tensor cores."""

import pytest

from experiments.bench.gpu_compiler import missing
from tests.aot.run_compiler import run_compiler


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("program", ["compile_gpu", "compile_gpu_linear"])
def test_kernels_compile(program, arch):
    """Those of screening, and of the linear family."""
    if reason := missing():
        pytest.skip(reason)
    run_compiler(program, str(arch))
