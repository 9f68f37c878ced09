"""The harness with fake contenders: turns, failures, settings of the processes, statistics."""

import csv
import math
import os

import pytest

from experiments.bench import report
from experiments.bench.harness import (
    Contender,
    Result,
    Run,
    Timing,
    best,
    check_same_values,
    run_interleaved,
)


def contender(function, name="a", allocator="default", repeats=1, **arguments):
    return Contender(name, f"tests.bench.fakes:{function}", arguments, allocator, repeats)


def timing(**settings):
    return Timing(**{"rounds": 2, "pause": 0, **settings})


def result(*seconds, name="a", value=1.0):
    runs = [Run(wall=2 * s, cpu=s, value=value) for s in seconds]
    return Result(Contender(name, ""), runs, value if runs else None)


def test_contenders_take_turns_after_everyone_is_warm(tmp_path):
    log = str(tmp_path / "log")
    entrants = [contender("logging", log=log, label=x) for x in "ab"]
    results = run_interleaved(entrants, timing(warmups=2))
    assert (tmp_path / "log").read_text() == "+a a a +b b b a b a b "
    assert [len(r.runs) for r in results] == [2, 2]
    assert [r.facts["label"] for r in results] == ["a", "b"]


def test_a_large_worker_is_started_anew_and_warmed_up_for_every_turn(tmp_path):
    log = str(tmp_path / "log")
    (kept,) = run_interleaved([contender("large", log=log, megabytes=50)], timing(keep_mb=500))
    assert (tmp_path / "log").read_text().split() == ["start"]
    assert 50 < kept.peak / 2**20 < 500
    run_interleaved([contender("large", log=log, megabytes=50)], timing(keep_mb=40))
    assert (tmp_path / "log").read_text().split() == ["start"] * 4


def test_failures_have_a_reason_and_the_others_go_on():
    entrants = [
        contender("unbuildable"),
        contender("failing_later", runs=2),
        contender("killed"),
        contender("busy", seconds=0.02, repeats=4),
    ]
    unbuilt, late, killed, sound = run_interleaved(entrants, timing())
    assert unbuilt.failure == "ValueError: cannot be built"
    assert late.failure == "RuntimeError: worn out"
    assert len(late.runs) == 1
    assert killed.failure == "killed by signal 9"
    assert sound.failure is None
    assert sound.median("wall") > 0.005 > sound.median("cpu")
    assert sound.median("wall") < 0.02  # of one repeat


def test_workers_get_their_allocator_cores_and_memory_limit(tmp_path):
    entrants = [
        contender("environment", variable="MALLOC_MMAP_MAX_"),
        contender("environment", allocator="tuned", variable="MALLOC_MMAP_MAX_"),
        contender("cores"),
        contender("large", log=str(tmp_path / "log"), megabytes=700),
    ]
    results = run_interleaved(entrants, timing(rounds=1, memory_limit_gb=0.5))
    assert [r.first_value for r in results] == [-1, 0, 1, None]
    assert results[-1].failure == "out of memory"


def test_statistics():
    r = result(3.0, 1.0, 2.0, 10.0)
    assert (r.median("cpu"), r.median("wall"), r.fastest("cpu")) == (2.5, 5.0, 1.0)
    assert result().median("cpu") == math.inf
    assert best([result(), result(2.0, name="b"), r]).contender.name == "b"
    assert best([result()]) is None


def test_contenders_must_compute_the_same():
    check_same_values([result(1.0), result(1.0, value=1.0 + 1e-7), result()], 1e-6)
    odd = result(1.0, value=1.1, name="odd")
    with pytest.raises(ValueError, match=r"different things.*odd \(default\) has 1\.1"):
        check_same_values([result(1.0), odd, result(1.0)], 1e-6)
    with pytest.raises(ValueError, match="different things"):
        check_same_values([result(1.0), result(1.0, value=math.nan), result(1.0)], 1e-6)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="threads must be in"):
        Timing(threads=os.cpu_count() + 1)
    with pytest.raises(ValueError, match="rounds must be >= 1, got 0"):
        Timing(rounds=0)


def test_the_table_is_printed_and_written_with_its_origin(tmp_path, capsys):
    ours, theirs = result(0.001), result(0.25, name="theirs")
    failed = Result(Contender("failed", ""), failure="out of memory")
    rows = [report.timing_row(r, ours) for r in (ours, theirs, failed)]
    report.publish(rows, tmp_path / "table.csv", ["a note"], report.machine_facts())
    lines = (tmp_path / "table.csv").read_text().splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert header[0].startswith("# command: python")
    assert any("GB" in line for line in header)
    table = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert (table[1]["cpu ms"], table[1]["cpu ratio"]) == ("250", "250")
    assert (table[2]["note"], table[2]["cpu ms"]) == ("out of memory", "")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len({len(line) for line in printed}) == 1
    assert "out of memory" in printed[-1]
