"""Bad words after every command: one line that begins with `error:`, and exit code 2."""

import re
import sys

import jax
import pytest

from experiments import interrupt
from multiscreen_jax.data import DataConfig
from multiscreen_jax.train import distributed, one_line_errors, override, train
from multiscreen_jax.train.command_line import named_config
from tests.bad_input.commands import REFUSED, UNKNOWN, all_commands, run

MAIN = [name for name in REFUSED if ".bench." not in name and not name.endswith("notebooks")]
CASES = [
    pytest.param(name, words, part, id=f"{name.removeprefix('experiments.')} {' '.join(words)}")
    for name, cases in REFUSED.items()
    for words, part in cases
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Files and folders that the words in capitals stand for."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("We hold these truths. " * 400)
    data = DataConfig(source=str(folder / "text.txt"), sequence_length=16, batch_size=2)
    config = override(
        named_config("experiments.configs", "tiny"),
        train={"steps": 1, "output_dir": str(folder / "run"), "tensorboard": False},
    )
    train(override(config, data={"source": data.source, "sequence_length": 16, "batch_size": 2}))
    names = {"RUN": "run", "FILE": "text.txt", "DIR": "empty", "OUT": "out"}
    return {word: str(folder / name) for word, name in names.items()}


def check(command, words, part, capsys):
    code = run(command, words)
    told = capsys.readouterr().err
    assert code == 2, told
    (line,) = told.splitlines()
    assert line.startswith("error: ")
    assert part in line


@pytest.mark.parametrize(("command", "words", "part"), CASES)
def test_one_line_and_code_2(command, words, part, places, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = [places.get(word, word) for word in words]
    part = re.sub(r"\b(RUN|FILE|DIR|OUT)\b", lambda found: places[found[0]], part)
    # Once JAX has counted its devices, which it has in this process, it does not look for others.
    monkeypatch.setattr(distributed, "initialize", lambda mesh: None)
    check(command, words, part, capsys)


QUICK = {"experiments.bench.mixer_costs", "experiments.bench.runs", *MAIN}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in sorted(all_commands() - {"experiments.notebooks"})
    ],
)
def test_an_option_that_is_none(command, capsys):
    words = {"experiments.train": ["tiny"], "experiments.launch": ["slurm", "status"]}
    before = set(sys.modules)
    check(command, [*words.get(command, []), *UNKNOWN], "", capsys)
    for name in set(sys.modules) - before:
        if name.startswith("experiments.bench."):
            del sys.modules[name]


def test_a_platform_that_does_not_start(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "foo")
    with pytest.raises(SystemExit, match="2"), one_line_errors():
        jax.devices("foo")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: JAX_PLATFORMS is 'foo', which does not start here: ")


@pytest.mark.parametrize(
    "name", ["train", "evaluate", "generate", "export", "prepare_data", "prepare_shards"]
)
def test_an_interrupt_ends_it_at_once(name, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(interrupt, "end_on_interrupt", lambda: called.append(name))
    assert run(f"experiments.{name}", ["--help"]) == 0
    assert called == [name]


@pytest.mark.parametrize("command", MAIN)
def test_there_are_enough(command):
    assert len(REFUSED[command]) >= 10


def test_help_is_no_error(capsys):
    assert run("experiments.generate", ["--help"]) == 0
    assert "--max-new-tokens" in capsys.readouterr().out
