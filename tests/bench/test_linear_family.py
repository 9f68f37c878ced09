"""The benchmark of the linear family end to end, at sizes that tell nothing about speed."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.bench import linear_family, report
from experiments.bench.harness import Timing
from experiments.bench.linear_references import levels_matrix
from pallas_kernels.log_linear.levels import level_table


def smoke(folder, monkeypatch, *lengths, op):
    """Rows of a table of ours alone."""
    monkeypatch.setattr(report, "RESULTS", folder)
    timing = Timing(rounds=1, warmups=0, pause=0)
    linear_family.run(
        linear_family.LinearFamilyBench(
            ops=(op,), lengths=(), ours_lengths=lengths, timing=timing, name="smoke"
        )
    )
    lines = (folder / "smoke.csv").read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


@pytest.mark.slow
def test_a_table_is_written_with_exponents(tmp_path, monkeypatch, capsys):
    rows = smoke(tmp_path, monkeypatch, 64, 128, 256, op="gated_delta_rule")
    assert [row["T"] for row in rows] == ["64", "64", "128", "128", "256", "256"]
    assert all(float(row["cpu ms"]) > 0 for row in rows)
    assert capsys.readouterr().out.count("time grows as T^") == 2


@pytest.mark.slow
def test_log_linear_ops_are_compared_with_their_parents(tmp_path, monkeypatch, capsys):
    rows = smoke(tmp_path, monkeypatch, 128, op="log_linear_ssd")
    assert [row["contender"] for row in rows] == ["ours", "ssd"] * 2
    assert capsys.readouterr().out.count("times ssd's CPU time") == 2


def test_contenders_of_log_linear_ops(tmp_path):
    op, name = "log_linear_gated_delta_rule", "hgdn_minimal"
    bench = linear_family.LinearFamilyBench(ops=(op,), lengths=(64,), hattention=tmp_path)
    found = linear_family.contenders(bench, op, 64, backward=True)
    assert [contender.name for contender in found] == ["ours", "gated_delta_rule", name]
    assert found[2].arguments["checkout"] == str(tmp_path.resolve())


@pytest.mark.torch
def test_levels_given_to_hattention():
    torch = pytest.importorskip("torch")
    found = levels_matrix(96, 2, SimpleNamespace(name="WEAK"), torch.int64, "cpu").numpy()
    np.testing.assert_array_equal(np.tril(found), np.tril(level_table(96, 9)))
    assert (found[np.triu_indices(96, 1)] == -1).all()


def test_unknown_ops_are_refused():
    with pytest.raises(ValueError, match="ops must be among"):
        linear_family.LinearFamilyBench(ops=("ssm",))
