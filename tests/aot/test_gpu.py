"""The GPU kernels compile with the real compiler, within registers, onto the tensor cores."""

import pytest

from experiments.bench.gpu_compiler import missing
from tests.aot.run_compiler import run_compiler


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
def test_screening_compiles(arch):
    if reason := missing():
        pytest.skip(reason)
    run_compiler("compile_gpu", str(arch))
