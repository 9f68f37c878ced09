"""Processes of one run: one's error ends all; other settings, versions or data are refused."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.launch import local
from multiscreen_jax.ownership import FolderInUse, owned
from multiscreen_jax.train import loop, override, provenance, together, train
from multiscreen_jax.train.errors import EndedTogether, NonFiniteLoss, NotWritten, exit_code
from tests.train import small

ROOT = Path(__file__).parents[2]


def told(monkeypatch, *others):
    """Lets other processes, by number from 1 on, tell these values."""
    monkeypatch.setattr(together, "_from_all", lambda value: [value, *others])


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("train", "seed", 5),
        ("train", "steps", 11),
        ("train", "checkpoint_every", 3),
        ("train", "output_dir", "elsewhere"),
        ("train", "on_nonfinite", "skip"),
        ("optim", "learning_rate", 0.5),
        ("data", "batch_size", 8),
        ("data", "seed", 1),
        ("model", "num_heads", 4),
        ("model", "precision", "highest"),
        ("mesh", "fsdp", 2),
    ],
)
def test_another_setting_is_refused_by_name(section, field, value, text, tmp_path, monkeypatch):
    config = small.config(text, tmp_path)
    mine = provenance.facts(config)
    told(monkeypatch, mine, provenance.facts(override(config, **{section: {field: value}})))
    with pytest.raises(ValueError, match="; allowed: one command, code and data") as refused:
        together.agree(mine)
    name = f"{section}.{field}".replace("_", "-")
    ours = getattr(getattr(config, section), field)
    assert str(refused.value).startswith(f"{name} is {ours!r} in process 0, {value!r} in process 2")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["version of jax", "code of the library", "JAX_ENABLE_X64", "version of Python"]
)
def test_another_version_is_refused_by_name(name, text, tmp_path, monkeypatch):
    mine = provenance.facts(small.config(text, tmp_path))
    told(monkeypatch, {**mine, name: "other"})
    with pytest.raises(ValueError, match=rf"^{name} is .* in process 0, 'other' in process 1; "):
        together.agree(mine)


def test_what_is_each_process_s_own_may_differ(text, tmp_path, monkeypatch):
    config = small.config(text, tmp_path)
    other = override(
        config,
        data={"prefetch": 9},
        mesh={"join_seconds": 7, "heartbeat_seconds": 7},
        train={"tensorboard": True, "wandb_project": "x", "profile_steps": (1, 2)},
    )
    told(monkeypatch, provenance.facts(other))
    together.agree(provenance.facts(config))


@pytest.mark.parametrize(("error", "code"), [(NotWritten("full"), 4), (ValueError("bad"), 1)])
def test_the_error_of_one_ends_all_with_its_code(error, code, monkeypatch):
    sent = []
    monkeypatch.setattr(together, "_from_all", lambda value: sent.append(value) or [value, None])

    def act():
        raise error

    with pytest.raises(type(error)):  # the process itself reports its own
        together.all_or_none(act)
    assert sent == [(code, str(error))]
    told(monkeypatch, None, sent[0])
    with pytest.raises(EndedTogether, match=f"^process 2: {error}$") as ended:
        together.all_or_none(lambda: "fine")
    assert exit_code(ended.value) == code
    told(monkeypatch, None)
    assert together.all_or_none(lambda: "fine") == "fine"


def run_two(*commands):
    """(return code, stderr) of one process of a run for each list of arguments."""
    address = f"127.0.0.1:{local._free_port()}"
    processes = []
    for number, arguments in enumerate(commands):
        variables = {
            "JAX_PLATFORMS": "cpu",
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(len(commands)),
            "JAX_PROCESS_ID": str(number),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "experiments.train", *arguments],
                cwd=ROOT,
                env={**os.environ, **variables},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        return [(process.communicate(timeout=300)[1], process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()


def errors(text):
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_two_real_processes_with_other_settings_both_end_with_2(text, tmp_path):
    mine = small.arguments(text, tmp_path / "run")
    other = [*mine, "--train.seed", "5", "--optim.learning-rate", "0.5"]
    for said, code in run_two(mine, other):
        assert code == 2
        (line,) = errors(said)
        assert "train.seed is 0 in process 0, 5 in process 1" in line
        assert "optim.learning-rate is 0.015625 in process 0, 0.5 in process 1" in line
        assert "Traceback" not in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_both_processes_of_a_second_run_in_a_folder_end_with_2(text, tmp_path):
    with owned(tmp_path):
        results = run_two(*[small.arguments(text, tmp_path)] * 2)
    for said, code in results:
        assert code == 2
        (line,) = errors(said)
        assert f"{tmp_path} is being written by another process (pid {os.getpid()} on " in line
    assert not list(tmp_path.iterdir())


def test_a_second_run_in_a_folder_is_refused_and_touches_nothing(text, tmp_path):
    with owned(tmp_path):
        before = tmp_path.stat().st_mtime_ns
        with pytest.raises(FolderInUse) as refused:
            train(small.config(text, tmp_path))
        assert tmp_path.stat().st_mtime_ns == before
    assert exit_code(refused.value) == 2
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_ends_all_with_3_whoever_could_not_save(monkeypatch):
    def fails():
        raise EndedTogether("process 1: could not save checkpoint 4", 4)

    collector = object.__new__(loop._Collector)
    values = dict.fromkeys(("loss", "gradient_norm", "update_norm"), float("nan"))
    collector._pending, collector._checked = (5, {**values, "finite": False}), None
    collector._settings = SimpleNamespace(on_nonfinite="stop")
    collector._checkpoints = SimpleNamespace(finish=fails, folder=Path("nowhere"))
    monkeypatch.setattr(loop._Collector, "_write", lambda *record: None)
    collector.restart_clock()
    with pytest.raises(NonFiniteLoss, match="Also: process 1: could not save") as ended:
        collector.check_finite()
    assert exit_code(ended.value) == 3
