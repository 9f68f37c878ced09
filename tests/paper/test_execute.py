"""Runs go on where they were cut off, and tables keep the rows of others."""

import json

import pytest

from experiments.paper import results
from experiments.paper.execute import LOG, execute
from experiments.paper.study import Run

PRINT = "platform"  # a module that prints a line


def attempts(folder):
    return (folder / LOG).read_text().count("$ python -m")


def test_a_finished_command_is_not_run_again(tmp_path):
    run = Run("one", (PRINT, "json.tool --json-lines {run}/lines"))
    (tmp_path / "lines").write_text("not json")
    with pytest.raises(RuntimeError, match=r"json.tool .* failed:\n.*"):
        execute(run, tmp_path)
    assert attempts(tmp_path) == 2
    (tmp_path / "lines").write_text("{}")
    seconds = execute(run, tmp_path)
    assert attempts(tmp_path) == 3
    assert execute(run, tmp_path) == seconds
    assert attempts(tmp_path) == 3


def test_seconds_of_an_attempt_that_was_cut_off_count(tmp_path):
    kept = {"command": PRINT, "seconds": 100.0, "ended": False}
    (tmp_path / "command_0.json").write_text(json.dumps(kept))
    assert 100 < execute(Run("one", (PRINT,)), tmp_path) < 160


def test_results_of_another_command_are_not_taken(tmp_path):
    execute(Run("one", (PRINT,)), tmp_path)
    with pytest.raises(RuntimeError, match="holds results of another command"):
        execute(Run("one", (f"{PRINT} --nothing",)), tmp_path)


def test_a_run_replaces_its_own_rows(tmp_path):
    first, second = Run("a", (), 1, {"rate": 0.5}), Run("b", (), 2, {"rate": 0.25})
    results.add("study", second, [{"loss": 3.0}], 2.0, tmp_path)
    results.add("study", first, [{"loss": 1.0}, {"loss": 2.0}], 1.0, tmp_path)
    results.add("study", second, [{"loss": float("nan")}], 3.0, tmp_path)
    rows = results.read("study", tmp_path)
    assert [(row["run"], row["seed"], row["rate"]) for row in rows] == [
        ("a", 1, 0.5),
        ("a", 1, 0.5),
        ("b", 2, 0.25),
    ]
    assert rows[0]["loss"] == 1.0
    assert rows[2]["loss"] != rows[2]["loss"]
    assert rows[2]["wall_seconds"] == 3.0
