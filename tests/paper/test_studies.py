"""Every study's commands can be run, at both scales, and RESULTS.md is what its tables say."""

import shlex

import pytest
import tyro

from experiments.evaluate import TASKS
from experiments.evaluate_config import EvaluateConfig
from experiments.paper import document, results
from experiments.paper.study import SCALES, load, names
from multiscreen_jax.train.command_line import parse


def check_command(command, folder):
    program, *arguments = shlex.split(command.format(run=folder))
    if program == "experiments.train":
        parse("experiments.configs", prog=program, arguments=arguments)
    elif program == "experiments.evaluate":
        config = tyro.cli(EvaluateConfig, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
        assert config.task in TASKS
    else:
        assert program.startswith("experiments.bench.")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", names())
def test_commands(name, scale, tmp_path):
    planned = load(name).runs(scale)
    assert planned
    assert len({run.name for run in planned}) == len(planned)
    # One of those that differ in values alone: parsing takes a while.
    commands = {}
    for run in planned:
        for command in run.commands:
            words = command.split()
            options = tuple(word for word in words if word.startswith("--"))
            commands[(*words[:2], *options)] = command
    for command in commands.values():
        check_command(command, tmp_path)


def test_studies_that_share_a_run_mean_the_same():
    for scale in SCALES:
        commands = {}
        for name in names():
            for run in load(name).runs(scale):
                assert commands.setdefault(run.name, run.commands) == run.commands


def test_results_are_those_of_the_tables(tmp_path):
    document.write(tmp_path / "RESULTS.md")
    assert (tmp_path / "RESULTS.md").read_text() == document.PATH.read_text()
    drawn = {path.name for path in (tmp_path / document.FIGURES).iterdir()}
    assert drawn == {f"{name}.png" for name in names() if results.read(name)}
    assert drawn == {path.name for path in (document.PATH.parent / document.FIGURES).iterdir()}


@pytest.mark.parametrize("name", names())
def test_rows_say_how_they_came_about(name):
    planned = {run.name: run for run in load(name).runs("small")}
    for row in results.read(name):
        run = planned[row["run"]]
        assert row["seed"] == run.seed
        assert row["command"] == f"python -m experiments.paper run {name} --only {run.name} --again"
        assert row["wall_seconds"] > 0
        assert len(str(row["commit"]).rstrip("+")) >= 7


def test_unknown_studies_are_refused():
    with pytest.raises(ValueError, match=r"no study 'scalings'; known: .*scaling"):
        load("scalings")
