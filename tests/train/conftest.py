"""Runs that tests compare with, or change copies of."""

import shutil

import pytest

from multiscreen_jax.train import train
from tests.train import small
from tests.train.old_runs import change_run_facts
from tests.train.tokenized import TEXT, WORDS, settings, write_tokenizer


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    return small.write_text(tmp_path_factory.mktemp("text") / "documents.jsonl")


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory, text):
    """(output folder, final parameters as numpy) of a run that nobody interrupted."""
    output = tmp_path_factory.mktemp("whole") / "run"
    result = train(small.config(text, output))
    assert result.step == small.STEPS
    return output, result.params


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder in which two runs were started: `run` on characters, `words` on a tokenizer.json."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "corpus.txt").write_text(TEXT * 40)
    write_tokenizer(folder / "tokenizer.json", *WORDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(settings("run", "corpus.txt"))
        train(settings("words", "corpus.txt", "tokenizer.json"))
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A copy of that folder in which a test may change what it likes, and is."""
    shutil.copytree(trained, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    for name in ("run", "words"):  # as if they had been started here
        change_run_facts(
            tmp_path / "place" / name / "checkpoints" / "2",
            lambda run: run.update(working_directory=str(tmp_path / "place")),
        )
    return tmp_path / "place"
