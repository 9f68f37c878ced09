"""A run that is killed and started again is the run that was never killed, bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from multiscreen_jax.train import load_params, metrics, train
from multiscreen_jax.train.checkpoint import steps_in
from tests.train import small

ROOT = Path(__file__).parents[2]


def interrupt(how, step, text, output, *more, name="tiny"):
    """Runs the command in its own process until it is killed; returns the finished process."""
    command = [sys.executable, "-m", "tests.train.interrupted", how, str(step)]
    return subprocess.run(
        [*command, *small.arguments(text, output, *more, name=name)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def assert_same_run(output, params, whole_run):
    whole_output, whole_params = whole_run
    assert small.loss_bits(output) == small.loss_bits(whole_output)
    assert [step for step, _ in small.loss_bits(output)] == list(range(1, small.STEPS + 1))
    for got, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(whole_params), strict=True):
        np.testing.assert_array_equal(got, wanted)
    restored, _, _ = load_params(output)
    for got, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_killed_while_saving_and_between_checkpoints(text, whole_run, tmp_path):
    output = tmp_path / "run"
    assert interrupt("saving", 8, text, output).returncode == -signal.SIGKILL
    assert small.loss_bits(output)[-1][0] >= 8
    killed = interrupt("step", 11, text, output)
    assert killed.returncode == -signal.SIGKILL
    assert f"continues {output} after step 4" in killed.stdout
    assert steps_in(output / "checkpoints") == [4, 8]
    assert_same_run(output, train(small.config(text, output)).params, whole_run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "step", "continues"),
    [("step", 2, None), ("saving", 4, None), ("sealing", 4, 4), ("sealing", 8, 8)],
)
def test_killed_anywhere(how, step, continues, text, whole_run, tmp_path, capsys):
    output = tmp_path / "run"
    assert interrupt(how, step, text, output).returncode == -signal.SIGKILL
    result = train(small.config(text, output))
    printed = capsys.readouterr().out
    assert (f"after step {continues}" in printed) == (continues is not None)
    assert_same_run(output, result.params, whole_run)


@pytest.mark.slow
def test_sigterm_ends_the_command_with_code_zero(text, whole_run, tmp_path):
    output = tmp_path / "run"
    ended = interrupt("term", 6, text, output)
    assert ended.returncode == 0, ended.stderr
    assert "run the same command again to continue" in ended.stdout
    assert_same_run(output, train(small.config(text, output)).params, whole_run)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_stops_at_the_step_boundary(
    number, text, whole_run, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "run"
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    original = metrics.JsonLines.write

    def write(self, record):
        original(self, record)
        if record["step"] == 5:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(metrics.JsonLines, "write", write)
    result = train(small.config(text, output))
    # The line of a step is written one step late.
    assert (result.step, result.stopped_by) == (6, signal.Signals(number).name)
    assert "stopped after step 6 of 12 and saved" in capsys.readouterr().out
    assert steps_in(output / "checkpoints")[-1] == 6
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    monkeypatch.undo()
    assert_same_run(output, train(small.config(text, output)).params, whole_run)


@pytest.mark.slow
def test_a_finished_run_continues_when_more_steps_are_asked_for(text, whole_run, tmp_path, capsys):
    output = tmp_path / "run"
    train(small.config(text, output, "--train.steps", "7", "--train.checkpoint-every", "0"))
    assert steps_in(output / "checkpoints") == [7]
    train(small.config(text, output, "--train.steps", "7"))  # nothing left to do
    assert len(small.records(output)) == 7
    assert_same_run(output, train(small.config(text, output)).params, whole_run)
    assert "continues" in capsys.readouterr().out
    described = (output / "config.json").read_text()
    with pytest.raises(ValueError, match=r"train\.steps is 11; .* allowed: at least 12"):
        train(small.config(text, output, "--train.steps", "11"))
    assert (output / "config.json").read_text() == described


@pytest.mark.parametrize("program", ["train", "generate", "evaluate"])
def test_an_interrupt_before_training_ends_the_command(program, tmp_path):
    # Python says on stderr what it has imported.
    command = [sys.executable, "-X", "importtime", "-m", f"experiments.{program}", "tiny"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while "numpy" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == -signal.SIGINT


def test_metrics_lines_after_the_restored_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n[1]\n{"loss": 1}\n\xff\n{"step": 2}\n{"step": 3}\n{"ste')
    metrics.keep_until(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_folder_is_one_run_of_weights_and_biases(tmp_path, monkeypatch):
    started = []
    stand_in = SimpleNamespace(init=lambda **settings: started.append(settings))
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    folders = [tmp_path / "a" / "seed0", tmp_path / "b" / "seed0"]
    for folder in folders:
        folder.mkdir(parents=True)
    for folder in [*folders, folders[0]]:
        metrics.WeightsAndBiases("project", folder, {})
    first, second, again = (settings["id"] for settings in started)
    assert first == again != second
    assert {settings["name"] for settings in started} == {"seed0"}
