"""The GPU kernels compile with the real compiler, within registers, onto the tensor cores."""

import pytest

from tests.aot.run_compiler import need_gpu_compiler, run_compiler


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("program", ["compile_gpu", "compile_gpu_linear"])
def test_kernels_compile(program, arch):
    """Those of screening, and of the linear family."""
    need_gpu_compiler()
    run_compiler(program, str(arch))
