"""The screening kernels compile for TPUs, within their memory, spills and schedules."""

import importlib.util
import json

import numpy as np
import pytest

from tests.aot.run_compiler import run_compiler

# Scheduled cycles per 256 x 256 pairs of a full tile that the forward may take.
FORWARD_CYCLES = {"v5e": 338, "v6e": 245}


def compiled(chip, length, dtype):
    """The rows of the table, by kernel."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler: pip install libtpu")
    printed = run_compiler("compile_tpu_kernels", chip, str(length), dtype)
    rows = json.loads(printed.split("rows", 1)[1])
    kernels = {row["kernel"]: row for row in rows}
    assert sorted(kernels) == [
        "screening_backward_keys",
        "screening_backward_queries",
        "screening_forward",
    ]
    return kernels


@pytest.mark.slow
@pytest.mark.parametrize("length", [4096, 131072])
@pytest.mark.parametrize("chip", ["v5e", "v6e"])
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


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_float32_kernels_do_not_spill(chip):
    kernels = compiled(chip, 4096, "float32")
    assert {row["spills"] for row in kernels.values()} == {0}


@pytest.mark.slow
def test_what_would_spill_is_refused():
    with pytest.raises(AssertionError, match="on v4: no block sizes are known"):
        compiled("v4", 4096, "bfloat16")
