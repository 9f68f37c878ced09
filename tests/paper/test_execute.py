"""Runs go on where they were cut off, and tables keep the rows of others."""

import json

import pytest

from experiments.paper import execute as module
from experiments.paper import results
from experiments.paper.execute import LOG, Executed, RunFailed, execute, move_away
from experiments.paper.study import Run

PRINT = "platform"  # a module that prints a line


@pytest.fixture(autouse=True)
def at_commit(monkeypatch):
    """Sets the commit that the checkout is at."""

    def set_commit(name):
        monkeypatch.setattr(module, "commit", lambda: name)

    set_commit("a")
    return set_commit


def attempts(folder):
    return (folder / LOG).read_text().count("$ python -m")


def test_a_finished_command_is_not_run_again(tmp_path):
    run = Run("one", (PRINT, "json.tool {run}/lines"))
    (tmp_path / "lines").write_text("not json")
    with pytest.raises(RunFailed, match=r"json.tool .* failed:\n.*"):
        execute(run, tmp_path)
    assert attempts(tmp_path) == 2
    (tmp_path / "lines").write_text("{}")
    executed = execute(run, tmp_path)
    assert attempts(tmp_path) == 3
    assert execute(run, tmp_path) == executed
    assert attempts(tmp_path) == 3


def test_seconds_of_an_attempt_that_was_cut_off_count(tmp_path):
    kept = {"command": PRINT, "seconds": 100.0, "ended": False, "commit": "a"}
    (tmp_path / "command_0.json").write_text(json.dumps(kept))
    assert 100 < execute(Run("one", (PRINT,)), tmp_path).seconds < 160


def test_results_of_another_command_are_not_taken(tmp_path):
    execute(Run("one", (PRINT,)), tmp_path)
    with pytest.raises(RunFailed, match="holds results of another command"):
        execute(Run("one", (f"{PRINT} --nothing",)), tmp_path)


def test_rows_are_of_the_commit_at_which_the_run_began(tmp_path, at_commit):
    run = Run("one", (PRINT,))
    execute(run, tmp_path)
    at_commit("b")
    assert execute(run, tmp_path).commit == "a"
    with pytest.raises(RunFailed, match=r"begun at another commit \(a, b; this is b\)"):
        execute(Run("one", (PRINT, f"{PRINT} --nothing")), tmp_path)
    move_away(tmp_path)
    assert execute(run, tmp_path).commit == "b"
    assert tmp_path.with_name(f"{tmp_path.name}.old1").exists()


@pytest.mark.parametrize("commands", [(PRINT,), (PRINT, PRINT)])
def test_folders_that_keep_no_commit_are_refused(tmp_path, commands):
    kept = {"command": PRINT, "seconds": 100.0, "ended": True}
    (tmp_path / "command_0.json").write_text(json.dumps(kept))
    with pytest.raises(RunFailed, match=r"at another commit .*an unknown one"):
        execute(Run("one", commands), tmp_path)


def test_runs_that_are_needed_come_first_and_once(tmp_path):
    first = Run("first", (PRINT,))
    for name in ("one", "two"):
        run = Run(name, ("json.tool {runs}/first/command_0.json",), needs=(first,))
        execute(run, tmp_path / name)
    assert attempts(tmp_path / "first") == 1
    assert '"ended": true' in (tmp_path / "two" / LOG).read_text()


def test_a_training_run_that_was_stopped_is_not_taken_for_whole(tmp_path, monkeypatch):
    """It saves and ends with 0."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").touch()
    (tmp_path / "experiments" / "train.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "config.json").write_text('{"train": {"steps": 20}}')
    (tmp_path / "train" / "metrics.jsonl").write_text('{"step": 10}\n')
    run = Run("one", ("experiments.train tiny --train.output-dir {run}/train",))
    with pytest.raises(RunFailed, match="was stopped; run it again to go on"):
        execute(run, tmp_path)
    (tmp_path / "train" / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n')
    execute(run, tmp_path)
    assert attempts(tmp_path) == 2


def test_a_run_replaces_its_own_rows(tmp_path):
    first, second = Run("a", (), 1, {"rate": 0.5}), Run("b", (), 2, {"rate": 0.25})
    results.add("study", second, [{"loss": 3.0}], Executed(2.0, "12e4567890"), tmp_path)
    results.add(
        "study", first, [{"loss": 1.0}, {"loss": 2.0}], Executed(1.0, "0012345678"), tmp_path
    )
    results.add("study", second, [{"loss": float("nan")}], Executed(3.0, "12e4567890"), tmp_path)
    rows = results.read("study", tmp_path)
    assert [(row["run"], row["seed"], row["rate"], row["commit"]) for row in rows] == [
        ("a", 1, 0.5, "0012345678"),
        ("a", 1, 0.5, "0012345678"),
        ("b", 2, 0.25, "12e4567890"),
    ]
    assert rows[0]["loss"] == 1.0
    assert rows[2]["loss"] != rows[2]["loss"]
    assert rows[2]["wall_seconds"] == 3.0
