"""Every study's commands can be run, at both scales, and RESULTS.md is what its tables say."""

import importlib
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import tyro
from PIL import Image

from experiments.evaluate import TASKS
from experiments.evaluate_config import EvaluateConfig
from experiments.paper import document, results
from experiments.paper.execute import Executed, commands
from experiments.paper.study import SCALES, Run, load, names
from multiscreen_jax.train.command_line import parse
from tests.paper import invented

ROOT = Path(__file__).parents[2]


def check_command(command):
    program, *arguments = shlex.split(command)
    if program == "experiments.train":
        parse("experiments.configs", prog=program, arguments=arguments)
    elif program == "experiments.evaluate":
        config = tyro.cli(EvaluateConfig, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
        assert config.task in TASKS
    else:
        assert program.startswith("experiments.bench.")
        module = importlib.import_module(program)
        (bench,) = (kind for name, kind in vars(module).items() if name.endswith("Bench"))
        tyro.cli(bench, args=arguments)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", names())
def test_commands(name, scale, tmp_path):
    planned = load(name).runs(scale)
    assert planned
    assert len({run.name for run in planned}) == len(planned)
    # One of those that differ in values alone: parsing takes a while.
    chosen = {}
    for run in planned:
        for _, command in commands(run, tmp_path / run.name):
            words = command.split()
            options = tuple(word for word in words if word.startswith("--"))
            chosen[(*words[:2], *options)] = command
    for command in chosen.values():
        check_command(command)


def test_a_bench_without_such_an_option_is_noticed():
    with pytest.raises(SystemExit):
        check_command("experiments.bench.long_context transformer-speeches --parts forward")


def test_runs_of_one_name_mean_the_same(tmp_path):
    for scale in SCALES:
        found = {}
        for name in names():
            for run in load(name).runs(scale):
                for path, command in commands(run, tmp_path / run.name):
                    assert found.setdefault(path, command) == command


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_results_at_the_papers_scale(name, tmp_path, monkeypatch):
    monkeypatch.setattr(document, "names", lambda: [name])
    study, tables = load(name), tmp_path / "results"
    planned = study.runs("paper")
    for number, run in enumerate(planned):
        invented.leave_files(run, tmp_path / run.name)
        measured = study.measure(run, tmp_path / run.name)
        assert measured
        results.add(name, run, measured, Executed(1.0, "0000000000"), tables)
        if number == 0:  # most of the plan is still to come
            document.write(tmp_path / "first.md", tables, "paper")
    document.write(tmp_path / "RESULTS.md", tables, "paper")
    page = (tmp_path / "RESULTS.md").read_text()
    assert f"{len(planned)} of {len(planned)} runs of the plan" in page
    assert f"1 of {len(planned)} runs of the plan" in (tmp_path / "first.md").read_text()
    labels = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")]
    if name not in ("loss_curves", "embedding_rows", "log_linear_positions"):  # two columns, tables
        assert len(set(labels)) == len(labels)


@pytest.mark.slow
def test_results_are_those_of_the_tables(tmp_path):
    document.write(tmp_path / "RESULTS.md")
    assert (tmp_path / "RESULTS.md").read_text() == document.PATH.read_text()
    drawn = {path.name: path for path in (tmp_path / document.FIGURES).iterdir()}
    kept = {path.name: path for path in (document.PATH.parent / document.FIGURES).iterdir()}
    assert set(drawn) == set(kept) == {f"{name}.png" for name in names() if results.read(name)}
    for name, path in kept.items():
        with Image.open(path) as image:
            same = image.info["Software"] == document.SOFTWARE
        if same:
            assert path.read_bytes() == drawn[name].read_bytes(), name


@pytest.mark.parametrize("name", names())
def test_rows_say_how_they_came_about(name):
    planned = {run.name: run for run in load(name).runs("small")}
    for row in results.read(name):
        run = planned[row["run"]]
        assert row["seed"] == run.seed
        assert row["command"] == f"python -m experiments.paper run {name} --only {run.name} --again"
        assert row["wall_seconds"] > 0


@pytest.mark.parametrize("name", names())
def test_rows_come_from_commits_of_this_history(name):
    if shutil.which("git") is None or git("rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("needs git and the whole history")
    for commit in {commit for row in results.read(name) for commit in row["commit"].split()}:
        assert git("merge-base", commit, "HEAD") == git("rev-parse", commit), commit


def git(*arguments):
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.parametrize("name", [name for name in names() if results.read(name)])
def test_rows_of_others_are_kept_to_the_byte(name, tmp_path):
    kept = results.FOLDER / f"{name}.csv"
    shutil.copy(kept, tmp_path)
    results.add(name, Run("none", ()), [], Executed(0.0, ""), tmp_path)
    assert (tmp_path / kept.name).read_bytes() == kept.read_bytes()


def test_unknown_studies_are_refused():
    with pytest.raises(ValueError, match=r"no study 'scalings' .*; known: .*mqar"):
        load("scalings")
