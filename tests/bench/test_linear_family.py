"""The benchmark of the linear family end to end, at sizes that tell nothing about speed."""

import csv

import pytest

from experiments.bench import linear_family, report
from experiments.bench.harness import Timing


@pytest.mark.slow
def test_a_table_is_written_with_exponents(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    linear_family.run(
        linear_family.LinearFamilyBench(
            ops=("gated_delta_rule",),
            lengths=(),
            ours_lengths=(64, 128, 256),
            timing=Timing(rounds=1, warmups=0, pause=0),
            name="smoke",
        )
    )
    lines = (tmp_path / "smoke.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert [row["T"] for row in rows] == ["64", "64", "128", "128", "256", "256"]
    assert all(float(row["cpu ms"]) > 0 for row in rows)
    assert capsys.readouterr().out.count("time grows as T^") == 2


def test_unknown_ops_are_refused():
    with pytest.raises(ValueError, match="ops must be among"):
        linear_family.LinearFamilyBench(ops=("ssm",))
