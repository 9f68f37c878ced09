"""The screening kernels compile for TPUs, within their memory, spills and schedules."""

import json

import numpy as np
import pytest

from tests.aot.run_compiler import need_tpu_compiler, run_compiler
from tests.marks import slow_unless

# Scheduled cycles per 256 x 256 pairs of a full tile that the forward may take.
FORWARD_CYCLES = {"v5e": 338, "v6e": 245}


def compiled(chip, length, dtype, key_dim=16, value_dim=64, *more):
    """The rows of the table, by kernel."""
    need_tpu_compiler()
    printed = run_compiler(
        "compile_tpu_kernels", chip, str(length), dtype, str(key_dim), str(value_dim), *more
    )
    rows = json.loads(printed.split("rows", 1)[1])
    kernels = {row["kernel"]: row for row in rows}
    assert sorted(kernels) == [
        "screening_backward_keys",
        "screening_backward_queries",
        "screening_forward",
    ]
    return kernels


@pytest.mark.parametrize(
    ("chip", "length"),
    slow_unless(
        (),
        (("v5e", 4096), ("v6e", 131072), ("v5e", 131072), ("v6e", 4096)),
        exhaustive=(("v5e", 4096), ("v5e", 131072), ("v6e", 4096)),
    ),
)
def test_bfloat16_kernels_keep_to_schedule_and_memory(chip, length):
    kernels = compiled(chip, length, "bfloat16")
    forward, *backward = (
        kernels[f"screening_{name}"]["full"]
        for name in ("forward", "backward_queries", "backward_keys")
    )
    assert forward <= FORWARD_CYCLES[chip]
    assert sum(backward) <= 4 * forward
    # Copies of q, k, v and dh, and the results: what the time-minor kernels may need.
    arrays = length * 16 * 2 * (2 * 16 + 2 * 64) / 2**20
    for name, row in kernels.items():
        assert row["spills"] == 0, name
        # A part of a tile on the window's edge: at most the time of as many pairs inside it, three
        # times over, and of the waits of the products.
        part = np.prod([int(x) for x in row["part"].split("x")]) / 256**2
        assert 0 < row["edge"] <= 3 * part * row["full"] + 1200, name
        assert row["temp MiB"] <= 1.05 * arrays


@pytest.mark.parametrize(
    ("chip", "dtype", "key_dim", "value_dim"),
    [
        pytest.param("v5e", "float32", 128, 128, marks=pytest.mark.exhaustive),
        pytest.param("v6e", "bfloat16", 128, 64, marks=pytest.mark.slow),
        pytest.param("tpu7x", "bfloat16", 64, 64, marks=pytest.mark.exhaustive),
        pytest.param("v5e", "float32", 16, 64, marks=pytest.mark.exhaustive),
        pytest.param("v5p", "float32", 16, 64, marks=pytest.mark.exhaustive),
        pytest.param("v6e", "float32", 16, 64, marks=pytest.mark.exhaustive),
        pytest.param("v4", "bfloat16", 16, 64, marks=pytest.mark.exhaustive),
    ],
)
def test_no_register_spills(chip, dtype, key_dim, value_dim):
    kernels = compiled(chip, 4096, dtype, key_dim, value_dim)
    assert {row["spills"] for row in kernels.values()} == {0}


@pytest.mark.parametrize("chip", slow_unless((), ("v5e", "v6e"), exhaustive=("v5e", "v6e")))
def test_keys_of_other_devices_take_the_time_of_own(chip):
    kernels = compiled(chip, 4096, "bfloat16", 16, 64, "gap", "packed")
    own = compiled(chip, 4096, "bfloat16", 16, 64, "packed")
    for name, row in kernels.items():
        assert row["spills"] == 0, name
        assert row["edge"] <= 1.02 * own[name]["edge"], name
