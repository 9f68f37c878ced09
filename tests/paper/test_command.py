"""`python -m experiments.paper`: what it says of failures and of settings that do not exist."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.paper import __main__ as command
from experiments.paper import commit, document, results
from experiments.paper.study import Run

ROOT = Path(__file__).parents[2]


def study(monkeypatch, tmp_path, *runs):
    """One study of invented runs, whose tables and page go to tmp_path."""
    found = SimpleNamespace(runs=lambda scale: list(runs), measure=lambda run, folder: [{"x": 1}])
    monkeypatch.setattr(command, "names", lambda: ["invented"])
    monkeypatch.setattr(command, "load", lambda name: found)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(document, "write", lambda page, tables, scale: (tmp_path / "R.md").touch())


def test_others_go_on_when_a_run_fails(monkeypatch, tmp_path, capsys):
    study(monkeypatch, tmp_path, Run("bad", ("json.tool nothing",)), Run("good", ("platform",)))
    with pytest.raises(SystemExit) as ended:
        command.run(command.Run(folder=tmp_path))
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert "error: python -m json.tool nothing failed" in error
    assert error.endswith("error: without results: bad\n")
    assert [row["run"] for row in results.read("invented", tmp_path / "results")] == ["good"]
    assert (tmp_path / "R.md").exists()


def test_again_starts_anew(monkeypatch, tmp_path):
    shared = Run("shared", ("platform",))
    study(monkeypatch, tmp_path, *(Run(n, ("platform",), needs=(shared,)) for n in "ab"))
    command.run(command.Run(folder=tmp_path))
    begun = sorted(path.name for path in (tmp_path / "small").iterdir())
    assert begun == ["a", "b", "shared"]
    command.run(command.Run(folder=tmp_path))
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == begun
    command.run(command.Run(folder=tmp_path, again=True))
    again = sorted(path.name for path in (tmp_path / "small").iterdir())
    assert again == ["a", "a.old1", "b", "b.old1", "shared", "shared.old1"]
    kept = json.loads((tmp_path / "small" / "shared" / "command_0.json").read_text())
    assert kept["ended"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--scale", "medium"], "--scale is 'medium'; allowed: small, paper"),
        pytest.param(
            ["list", "scalings"],
            "there is no study 'scalings' (did you mean scaling?); known: ",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["run", "windows", "--only", "foo"],
            "--only has foo; allowed: positions-multiscreen",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_errors_are_one_line(arguments, message):
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.paper", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: {message}")
    assert ended.returncode == 2


def test_commit_is_that_of_the_code(monkeypatch, tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    monkeypatch.setattr(commit, "_ROOT", tmp_path)
    assert commit.commit() == "unknown"
    paper = tmp_path / "experiments" / "paper"
    for folder in ("figures", "results"):
        (paper / folder).mkdir(parents=True)
    git("init", "-q")
    (paper / "study.py").touch()
    git("add", "-A")
    git("commit", "-qm", "code")
    code = git("rev-parse", "HEAD")[:10]
    for name in ("figures/a.png", "results/a.csv", "RESULTS.md"):
        (paper / name).touch()
    assert commit.commit() == code
    git("add", "-A")
    git("commit", "-qm", "results")
    assert commit.commit() == code
    (tmp_path / "experiments" / "config.py").touch()
    assert commit.commit() == f"{code}+"


def test_a_list_of_studies_or_of_one_studys_commands(capsys):
    command.show(command.List())
    short = capsys.readouterr().out.splitlines()
    assert len(short) == len(command.names())
    assert "scaling: Scaling; 8 runs" in short
    command.show(command.List(("scaling",)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "scaling: scaling-multiscreen-2x40"
    assert lines[1].startswith("  python -m experiments.train text_small --train.output-dir RUNS/")
