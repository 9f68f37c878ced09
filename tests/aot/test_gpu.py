"""The GPU kernels compile with the real compiler, within registers, onto the tensor cores."""

import pytest

from tests.aot.run_compiler import need_gpu_compiler, run_compiler


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "arch"),
    [
        ("compile_gpu", 90),
        ("compile_gpu_linear", 80),
        pytest.param("compile_gpu", 80, marks=pytest.mark.exhaustive),
        pytest.param("compile_gpu_linear", 90, marks=pytest.mark.exhaustive),
    ],
)
def test_kernels_compile(program, arch):
    """Those of screening, and of the linear family."""
    need_gpu_compiler()
    run_compiler(program, str(arch))
