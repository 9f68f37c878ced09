"""The training-step benchmark end to end, at a size that tells nothing about speed."""

import csv

import pytest

from experiments.bench import report, training_step
from experiments.bench.harness import Timing


@pytest.mark.slow
@pytest.mark.torch
def test_losses_agree_and_a_table_is_written(tmp_path, monkeypatch):
    pytest.importorskip("multiscreen")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    timing = Timing(rounds=1, warmups=0, pause=0)
    bench = training_step.TrainingStepBench(
        lengths=(64,), psi=3, allocators=("tuned",), timing=timing, name="smoke"
    )
    training_step.run(bench)  # raises unless the losses agree
    lines = (tmp_path / "smoke.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert [row["contender"] for row in rows[::3]] == ["ours", "pypi"]
    assert all(float(row["cpu ms"]) > 0 for row in rows)
