"""Run folders of earlier versions open with the tokenizer they were trained with, or not at all."""

import json
from pathlib import Path

import pytest

from multiscreen_jax.data import open_pipeline, open_tokenizer
from multiscreen_jax.data.loading import open_split
from multiscreen_jax.data.pipeline import fingerprint_of
from multiscreen_jax.train import run_tokenizer, together
from multiscreen_jax.train.trained_run import open_run
from tests.train.old_runs import change_run_facts, make_old
from tests.train.tokenized import (
    TEXT,
    WORDS,
    one_line,
    prepare,
    settings,
    token_file,
    write_tokenizer,
)


def opened_with_one_warning(name):
    with pytest.warns(UserWarning, match="has no copy of its tokenizer; '") as warned:
        opened = open_run(name)
    assert len(warned) == 1
    assert "\n" not in str(warned[0].message)
    return opened.tokenizer, str(warned[0].message)


def test_runs_of_earlier_versions_open(place, monkeypatch):
    for name, wanted in (("run", "characters"), ("words", "tokenizer.json")):
        fingerprint = open_run(name).tokenizer.fingerprint
        tokenizer, text = opened_with_one_warning(make_old(place / name))
        assert (tokenizer.name, tokenizer.fingerprint) == (wanted, fingerprint)
        assert f"{name} has no copy of its tokenizer; '{wanted}'" in text
    prepare(settings("run", "corpus.txt", train={"steps": 3}), monkeypatch)
    assert run_tokenizer.kept(place / "run") is not None  # written when it goes on
    assert open_run("run").tokenizer.name == "characters"
    Path("corpus.txt").unlink()
    tokenizer, text = opened_with_one_warning("words")
    assert tokenizer.decode([2]) == "the"
    assert "is used unchecked, since its data is gone" in text


@pytest.mark.parametrize("change", ["corpus", "tokenizer", "no corpus", "no tokenizer"])
def test_runs_of_earlier_versions_are_not_read_with_another_tokenizer(change, place):
    name = "words" if "tokenizer" in change else "run"
    make_old(place / name)
    if change == "corpus":
        Path("corpus.txt").write_text(TEXT * 40 + "A1 new line\n")
    elif change == "tokenizer":
        write_tokenizer(Path("tokenizer.json"), *reversed(WORDS))
    else:
        Path("corpus.txt" if change == "no corpus" else "tokenizer.json").unlink()
    text = "does not exist" if change.startswith("no") else "no copy of its tokenizer, and cannot"
    with pytest.raises((ValueError, FileNotFoundError), match=text) as error:
        open_run(name)
    one_line(error)


def test_a_copy_that_contradicts_the_settings_is_refused(place):
    make_old(place / "run")
    run_tokenizer.keep(place / "run", open_tokenizer("gpt2"))
    folder = place / "run" / "checkpoints" / "2"
    change_run_facts(folder, lambda run: run["config"]["data"].update(alphabet="abc"))
    with pytest.raises(ValueError, match=r"tokenizer 'characters' .* holds 'gpt2'") as error:
        open_run("run")
    one_line(error)


def reads(output, fingerprint, **data):
    """Makes a run's folder an old one that was trained on other data."""

    def change(run):
        run.update(data_fingerprint=fingerprint)
        run["config"]["data"].update(data)

    make_old(output)
    change_run_facts(output / "checkpoints" / "2", change)


def test_tokens_that_cannot_be_found_are_not_taken_for_bytes(place, tmp_path, monkeypatch):
    (place / "folder").mkdir()
    for suffix in ("bin", "json"):
        token_file(place).with_suffix(f".{suffix}").rename(place / "folder" / f"corpus.{suffix}")
    facts = json.loads((place / "folder" / "corpus.json").read_text())
    facts["tokenizer"] = str(place / "words.json")
    (place / "folder" / "corpus.json").write_text(json.dumps(facts))
    config = settings("x", "folder", "bytes")
    reads(place / "run", open_pipeline(config.data).fingerprint, source="folder", tokenizer="bytes")
    tokenizer, _ = opened_with_one_warning("run")
    assert tokenizer.decode([2, 3]) == "the cat"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="no copy of its tokenizer, and it cannot") as error:
        open_run(place / "run")
    one_line(error)
    run_tokenizer.keep(place / "run", tokenizer)
    assert open_run(place / "run").tokenizer.decode([2, 3]) == "the cat"


def a_card(folder):
    (folder / "README.md").write_text("# A card: {}")
    return ["README.md", "data/a.txt", "data/b.txt"]


def splits(folder):
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": f"{name} 123 {TEXT}"}))
    (folder / "data").rename(folder / ".data")
    return ["test.jsonl", "train.jsonl"]


@pytest.mark.parametrize("change", [a_card, splits])
@pytest.mark.parametrize("tokenizer", ["characters", "tokenizer.json"])
def test_folders_that_are_read_otherwise_now_still_tell_the_tokenizer(change, tokenizer, place):
    """Earlier versions read every file of a folder, and a batch may be larger than the corpus."""
    folder = place / "folder"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "a.txt").write_text(TEXT * 20)
    (folder / "data" / "b.txt").write_text(TEXT * 9)
    texts = []
    for name in change(folder):
        content = (folder / name).read_text()
        texts.append(json.loads(content)["text"] if name.endswith("l") else content)
    (place / "all.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    data = settings("x", "all.jsonl", tokenizer, data={"batch_size": 100_000}).data
    store, wanted = open_split(data, "train")
    fingerprint = fingerprint_of(data, "train", store.checksum, wanted)
    fields = {"source": "folder", "tokenizer": tokenizer, "batch_size": 100_000}
    reads(place / "run", fingerprint, **fields)
    assert opened_with_one_warning("run")[0].fingerprint == wanted.fingerprint
    (folder / "more.txt").write_text("other")
    with pytest.raises(
        ValueError, match=r"no copy of its tokenizer, and cannot|in names|names put"
    ):
        open_run("run")


def test_all_processes_agree_on_who_keeps_an_old_run_s_tokenizer(place, monkeypatch):
    told = []
    monkeypatch.setattr(together, "_from_all", lambda value: told.append(value) or [value])
    config = settings("run", "corpus.txt", train={"steps": 3})
    prepare(config, monkeypatch)
    with_copy = len(told)
    make_old(place / "run")
    prepare(config, monkeypatch)
    assert len(told) == 2 * with_copy
