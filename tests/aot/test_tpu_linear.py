"""The linear family's kernels compile for TPUs: no spills, and levels cost what they may."""

import json

import pytest

from tests.aot.run_compiler import need_tpu_compiler, run_compiler


@pytest.mark.parametrize(
    ("chip", "model", "length"),
    [
        pytest.param("v5e", "GDN 800M", 16384, marks=pytest.mark.slow),
        pytest.param("v5p", "GDN 800M", 131072, marks=pytest.mark.exhaustive),
        pytest.param("v6e", "Mamba-2 800M", 131072, marks=pytest.mark.exhaustive),
        pytest.param("v5e", "Mamba-2 800M", 16384, marks=pytest.mark.exhaustive),
        pytest.param("v6e", "GDN tiny", 4096, marks=pytest.mark.exhaustive),
    ],
)
def test_kernels_keep_to_registers_and_schedule(chip, model, length):
    need_tpu_compiler()
    printed = run_compiler("compile_tpu_linear", chip, model, str(length))
    rows = json.loads(printed.split("rows", 1)[1])
    assert [row["kernel"] for row in rows] == ["forward", "backward"] * 2
    assert {row["spills"] for row in rows} == {0}
    for row in rows:
        assert row["vmem MiB"] <= row["reckoned MiB"] + 0.1, row
        # Where there are several blocks of every array, as here on v5p, they are all counted.
        assert chip != "v5p" or row["vmem MiB"] >= row["reckoned MiB"] - 0.1, row
    parent, _, levels, _ = rows
    assert 0 < parent["cycles"] < levels["cycles"]
    assert levels["cycles"] <= (1 + 0.35 * levels["levels"]) * parent["cycles"]


@pytest.mark.slow
def test_a_decoded_token_moves_its_states_once():
    """In and out, and no copy of them is made."""
    need_tpu_compiler()
    printed = run_compiler("compile_tpu_step", "v5e")
    for row in json.loads(printed.split("rows", 1)[1]):
        assert row["bytes / state"] < 2.3, row
        assert row["temporaries / state"] < 0.3, row
