"""The program that chooses block sizes, from end to end on interpreted kernels."""

import json

import pytest

from experiments.bench import tune
from pallas_kernels.screening import block_tables
from pallas_kernels.screening.block_sizes import TpuBlock, tpu_blocks


@pytest.fixture(autouse=True)
def _tables():
    block_tables.table.cache_clear()
    yield
    block_tables.table.cache_clear()


def run(output, **kwargs):
    tune.main(dtypes=("float32",), key_dims=(8,), value_dims=(32,), repeats=1, length=70,
              output=output, **kwargs)  # fmt: skip


@pytest.mark.slow
def test_measures_and_writes_a_table_that_the_lookup_reads(tmp_path, monkeypatch):
    run(tmp_path / "tpu.json")
    written = json.loads((tmp_path / "tpu.json").read_text())
    assert "interpretation" in written["source"]
    monkeypatch.setattr(block_tables, "DIRECTORY", tmp_path)
    block_tables.table.cache_clear()
    blocks = tpu_blocks(70, 8, 32, exact=True)
    for name, block in zip(blocks._fields, blocks, strict=True):
        assert block == TpuBlock(**written["blocks"]["float32 K=8 V=32"][name])
    with pytest.raises(NotImplementedError, match="K=16 V=32 on tpu: no block sizes are known"):
        tpu_blocks(70, 16, 32, exact=True)


def test_a_candidate_that_differs_ends_the_run(tmp_path, monkeypatch):
    answers = iter((1.0, 1.1))
    monkeypatch.setattr(tune, "screening_pallas_tpu", lambda q, k, v, *_: next(answers) * v)
    with pytest.raises(SystemExit, match="differs by"):
        run(tmp_path / "tpu.json")


def test_nothing_interpreted_is_shipped():
    with pytest.raises(SystemExit, match="not shipped"):
        run(None)
    with pytest.raises(SystemExit, match="not shipped"):
        run(block_tables.DIRECTORY / "v5e.json")


@pytest.mark.parametrize("sizes", [{}, {"forward": [[5.0, {"rows": 8}], [9.0, {"rows": 4}]]}])
def test_without_candidates_for_a_kernel_it_is_refused(tmp_path, monkeypatch, sizes):
    every = {kernel: [] for kernel in tune.KERNELS} | sizes
    monkeypatch.setattr(tune, "candidates_of", lambda *_: every)
    run(tmp_path / "v5e.json", schedules_of="v5e")
    assert not (tmp_path / "v5e.json").exists()


def test_by_schedule_the_fewest_cycles_win(tmp_path, monkeypatch):
    best, worse = TpuBlock(256, 256, 64)._asdict(), TpuBlock(128, 128, 64)._asdict()
    every = {kernel: [[5.0, best], [9.0, worse]] for kernel in tune.KERNELS}
    monkeypatch.setattr(tune, "candidates_of", lambda *_: every)
    run(tmp_path / "v5e.json", schedules_of="v5e")
    written = json.loads((tmp_path / "v5e.json").read_text())["blocks"]
    assert written["float32 K=8 V=32"] == {kernel: best for kernel in tune.KERNELS}
