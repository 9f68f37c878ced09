"""The benchmark of the GPU kernels, without a GPU."""

import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import gpu_run
from experiments.bench.gpu_programs import Case, Program, Table
from experiments.bench.gpu_run import relative_error
from pallas_kernels import interpret_kernels


def test_relative_error():
    assert relative_error(np.array([3.0, 4.5]), np.array([3.0, 4.0])) == pytest.approx(0.1)
    assert relative_error(np.zeros(2), np.zeros(2)) == 0
    assert math.isnan(relative_error(np.array([1.0, np.nan]), np.ones(2)))


def test_checks_say_what_is_wrong(tmp_path):
    table = Table(tmp_path / "errors.csv", ["a note"])
    with interpret_kernels():
        gpu_run.check_special_values(table)
    assert {row["verdict"] for row in table.rows} == {"right"}

    def program(value):
        return Program(
            gpu_run.forward(lambda x: (x * value,)), (jnp.ones(3), 0), {"dtype": "float32"}
        )

    table.rows.clear()
    gpu_run.compare([(program(1), program(1)), (program(1), program(2))], ("h",), table)
    assert [row["verdict"] for row in table.rows] == ["right", "WRONG"]
    assert "a note" in table.output.read_text()


def test_what_does_not_compile_gets_a_note(tmp_path):
    def broken(x):
        raise NotImplementedError("not on this device")

    table = Table(tmp_path / "times.csv", [])
    gpu_run.measure(
        [Program(gpu_run.forward(broken), (jnp.ones(3), 0), {"what": "it"})], table, 0.01
    )
    assert "not on this device" in table.rows[0]["note"]


def test_flops_are_of_visited_pairs():
    case = Case("bfloat16", 2, 3, 1024, 16, 64, "infinite")
    flops = gpu_run.kernel_flops(case)
    pairs = 2 * 3 * 1024 * 1025 / 2
    assert 1 <= flops["forward"] / (2 * 80 * pairs) < 1.2
    assert 1 <= flops["forward + backward"] / (2 * (80 + 96 + 160) * pairs) < 1.2


@pytest.mark.parametrize(
    ("tiny", "output", "message"),
    [
        (False, "elsewhere.csv", "there is no GPU; --tiny --output PATH"),
        (True, gpu_run.report.RESULTS / "gpu_run.csv", "is a GPU's table; give --tiny another"),
    ],
)
def test_tables_of_a_gpu_are_not_overwritten_without_one(tiny, output, message):
    with pytest.raises(SystemExit, match=message):
        gpu_run.needs_gpu(tiny, Path(output))
    gpu_run.needs_gpu(True, Path("elsewhere.csv"))
