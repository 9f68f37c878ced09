"""prepare_data after a kill: the same command goes on, and no byte is another."""

import io
import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from experiments import prepare_data, prepare_progress
from experiments.prepare_data import PrepareConfig, prepare
from multiscreen_jax.ownership import FolderInUse, owned
from tests.data.corpora import (
    TEXTS,
    byte_level_tokenizer,
    metaspace_tokenizer,
    write_json_lines,
    write_parquet,
)

ROOT = Path(__file__).parents[2]
JOURNAL = prepare_progress.FILE


class Killed(BaseException):
    """An error that no code catches."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_json_lines(folder / "a.jsonl.xz", [*TEXTS[:5], "", *TEXTS[5:9]])
    write_parquet(folder / "b.parquet", TEXTS[9:14])
    (folder / "c.txt").write_text(TEXTS[14])
    write_json_lines(folder / "d.jsonl", TEXTS[15:20])
    return folder


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Documents are encoded a few at a time, and what is done is saved after each."""
    monkeypatch.setattr(prepare_data, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # a killed process leaves its pages
    monkeypatch.setattr("multiscreen_jax.data.loading.BATCH_CHARACTERS", 100)


def run(corpus, output, **options):
    console = Console(file=io.StringIO(), width=200)
    options = {"tokenizer": "bytes", "valid_fraction": 0.2, **options}
    prepare(PrepareConfig((str(corpus),), output, **options), console)
    return console.file.getvalue()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill_at(monkeypatch, owner, name, call):
    """The call with this number, from 0, of a function never comes back."""
    function, calls = getattr(owner, name), itertools.count()

    def killed(*args, **kwargs):
        if next(calls) == call:
            raise Killed
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, killed)


def killed_run(corpus, output, owner, name, call, **options):
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, owner, name, call)
        with pytest.raises(Killed):
            run(corpus, output, **options)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "bytes": "bytes",
        "byte level": str(byte_level_tokenizer(folder / "level.json")),
        "metaspace": str(metaspace_tokenizer(folder / "space.json")),
    }


@pytest.mark.parametrize("tokenizer", ["bytes", "byte level", "metaspace"])
def test_killed_again_and_again_between_documents(corpus, tmp_path, tokenizers, tokenizer):
    options = {"tokenizer": tokenizers[tokenizer]}
    run(corpus, tmp_path / "whole", **options)
    again = tmp_path / "again"
    for _ in range(6):
        killed_run(corpus, again, prepare_data, "_append", 3, **options)
    assert (again / JOURNAL).is_file()
    assert "goes on after 18 documents" in run(corpus, again, **options)
    assert contents(again) == contents(tmp_path / "whole")


PLACES = [
    *((Path, "replace", call) for call in (0, 7, 20, 21, 22, 23, 24, 25)),
    *((Path, "unlink", call) for call in (0, 3, 5, 8)),
    *((prepare_data, "finish_token_file", call) for call in (0, 1)),
    *((os, "truncate", 0), (os, "fsync", 40), (prepare_data, "split_point", 0)),
    (prepare_data, "open_journal", 0),
]


@pytest.mark.parametrize(
    ("owner", "name", "call"), PLACES, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_killed_anywhere_else(corpus, tmp_path, tokenizers, owner, name, call):
    options = {"tokenizer": tokenizers["metaspace"]}
    run(corpus, tmp_path / "whole", **options)
    again = tmp_path / "again"
    killed_run(corpus, again, owner, name, call, **options)
    run(corpus, again, **options)
    assert contents(again) == contents(tmp_path / "whole")


def test_files_of_an_earlier_corpus_are_replaced_at_the_end(corpus, tmp_path):
    other = write_json_lines(tmp_path / "other.jsonl", TEXTS[20:])
    run(corpus, tmp_path / "whole")
    out = tmp_path / "out"
    run(other, out)
    before = contents(out)
    killed_run(corpus, out, prepare_data, "_append", 7, overwrite=True)
    assert {name: contents(out)[name] for name in before} == before
    with pytest.raises(FileExistsError, match=r"train.bin exists; allowed: .* --overwrite"):
        run(corpus, out)
    killed_run(corpus, out, prepare_data, "finish_token_file", 1, overwrite=True)
    run(corpus, out, overwrite=True)
    assert contents(out) == contents(tmp_path / "whole")


def test_own_validation_files_go_on_too(corpus, tmp_path):
    options = {"valid_inputs": (str(corpus / "d.jsonl"),)}
    run(corpus, tmp_path / "whole", **options)
    killed_run(corpus, tmp_path / "again", prepare_data, "_append", 22, **options)
    assert "goes on after 22 documents" in run(corpus, tmp_path / "again", **options)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda out: (out / JOURNAL).write_text("{"), "starts over: .*progress.json: not JSON"),
        (lambda out: (out / JOURNAL).write_text("[" * 10**5), "starts over: .*progress.json: JSON"),
        (lambda out: (out / JOURNAL).write_text('{"command": 1}'), "starts over: .*lacks parts"),
        (lambda out: cut(out / "train.tokens.partial"), "tokens.partial is shorter than progress"),
        (lambda out: (out / "train.starts.partial").unlink(), "starts.partial is shorter than"),
    ],
)
def test_what_cannot_go_on_starts_over_and_says_so(tmp_path, change, said):
    source = write_json_lines(tmp_path / "c.jsonl", TEXTS)
    out = tmp_path / "out"
    run(source, tmp_path / "whole")
    killed_run(source, out, prepare_data, "_append", 7)
    change(out)
    (out / "train.bin").touch()
    before = contents(out)
    with pytest.raises(FileExistsError, match=r"train.bin exists; allowed: .* --overwrite"):
        run(source, out)
    assert contents(out) == before
    (out / "train.bin").unlink()
    assert re.search(said, run(source, out))
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "other", [{"valid_fraction": 0.5}, {"tokenizer": "characters"}, {"text_field": "title"}, None]
)
def test_another_command_leaves_unfinished_work(tmp_path, other):
    source = write_json_lines(tmp_path / "c.jsonl", TEXTS)
    run(source, tmp_path / "whole")
    out, options = tmp_path / "out", other or {}
    killed_run(source, out, prepare_data, "_append", 30)
    before = contents(out)
    if other is None:  # a changed file
        source = write_json_lines(source, [text.upper() for text in TEXTS])
    with pytest.raises(ValueError, match=r"unfinished token files of other .* --overwrite"):
        run(source, out, **options)
    assert contents(out) == before
    if other is None:
        run(source, tmp_path / "upper")
        assert "starts over: " in run(source, out, overwrite=True)
        assert contents(out) == contents(tmp_path / "upper")
    else:
        assert "goes on after 30 documents" in run(source, out)
        assert contents(out) == contents(tmp_path / "whole")


def test_a_full_disk_loses_nothing(corpus, tmp_path, monkeypatch):
    save, calls = prepare_progress.Journal.save, itertools.count()

    def full(self, *files):
        if next(calls) == 9:
            raise OSError(28, "No space left on device")
        save(self, *files)

    monkeypatch.setattr(prepare_progress.Journal, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run(corpus, tmp_path / "again")
    assert "goes on after 9 documents" in run(corpus, tmp_path / "again")
    run(corpus, tmp_path / "whole")
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_two_at_once(corpus, tmp_path):
    with owned(tmp_path), pytest.raises(FolderInUse, match=f"{tmp_path} is being written by"):
        run(corpus, tmp_path)
    run(corpus, tmp_path)


KILLING = """
import os, signal
from experiments import prepare_data
append, calls = prepare_data._append, 0
def killing(*args):
    global calls
    calls += 1
    if calls == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    append(*args)
prepare_data._append, prepare_data.SAVE_SECONDS = killing, 0.0
prepare_data.main()
"""


def test_a_real_kill(corpus, tmp_path):
    run(corpus, tmp_path / "whole")
    again = tmp_path / "again"
    arguments = [str(corpus), "--output", str(again), "--tokenizer", "bytes"]
    command = [sys.executable, "-c", KILLING, *arguments, "--valid-fraction", "0.2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "train: 1 .jsonl in" in done.stdout
    assert "goes on after 11 documents" in run(corpus, again)
    assert contents(again) == contents(tmp_path / "whole")
