"""The tokenizer.json beside prepared tokens is the one that made them, whatever fails."""

import io
import itertools
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console

from experiments import prepare_data, prepare_shards
from multiscreen_jax.data import DataConfig, open_pipeline
from multiscreen_jax.data.tokenizer_copy import kept_tokenizer
from multiscreen_jax.data.tokenizers import open_tokenizer
from tests.data.corpora import TEXTS, byte_level_tokenizer, write_json_lines


class Killed(BaseException):
    """An error that no code catches."""


@pytest.fixture
def corpus(tmp_path):
    return write_json_lines(tmp_path / "c.jsonl", TEXTS)


@pytest.fixture
def tokenizers(tmp_path):
    """Two files of as many tokens, which stand for other text."""
    one = byte_level_tokenizer(tmp_path / "one.json")
    spec = json.loads(one.read_text())
    vocabulary = spec["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    (tmp_path / "two.json").write_text(json.dumps(spec))
    return str(one), str(tmp_path / "two.json")


def prepare(corpus, out, tokenizer, **options):
    config = prepare_data.PrepareConfig((str(corpus),), out, tokenizer=tokenizer, **options)
    prepare_data.prepare(config, Console(file=io.StringIO()))


def shards(corpus, out, tokenizer):
    config = prepare_shards.ShardsConfig((str(corpus),), out, shards=2, tokenizer=tokenizer)
    prepare_shards.prepare(config, Console(file=io.StringIO()))


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(prepare_shards, "_workers", lambda count: ThreadPoolExecutor(1))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def text(source):
    pipeline = open_pipeline(DataConfig(source=str(source), sequence_length=16))
    return pipeline.tokenizer.decode(pipeline.batch(0)["tokens"].ravel())


def test_overwriting_that_fails_leaves_the_old_tokenizer(corpus, tokenizers, tmp_path):
    one, two = tokenizers
    out = tmp_path / "out"
    prepare(corpus, out, one)
    before = contents(out)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"text": 1}\n')
    with pytest.raises(ValueError, match="field 'text' is int"):
        prepare(bad, out, two, overwrite=True)
    assert contents(out) == before


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("owner", [Path, shutil])
def test_killed_while_overwriting(corpus, tokenizers, tmp_path, owner, number):
    one, two = tokenizers
    prepare(corpus, tmp_path / "whole", two)
    out = tmp_path / "out"
    prepare(corpus, out, one)
    expected = text(out / "train.bin")
    name, calls = {Path: "replace", shutil: "copyfile"}[owner], itertools.count()
    function = getattr(owner, name)

    def killed(*args, **kwargs):
        if next(calls) == number:
            raise Killed
        return function(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, killed)
        try:
            prepare(corpus, out, two, overwrite=True)
        except Killed:
            if (out / "train.json").exists():
                assert text(out / "train.bin") == expected
    prepare(corpus, out, two, overwrite=True)
    assert contents(out) == contents(tmp_path / "whole")


def test_another_tokenizer_is_noticed(corpus, tokenizers, tmp_path, in_process):
    one, two = tokenizers
    prepare(corpus, tmp_path / "bin", one)
    shards(corpus, tmp_path / "shards", one)
    for out, source in (("bin", "bin/train.bin"), ("shards", "shards")):
        before = text(tmp_path / source)
        assert "Batman" in before
        shutil.copyfile(two, tmp_path / out / "tokenizer.json")
        with pytest.raises(ValueError, match=r"tokenizer .*json is not the one that made the tok"):
            text(tmp_path / source)
        sidecar = (tmp_path / source).with_suffix(".json")
        sidecar = sidecar if sidecar.exists() else tmp_path / source / "tokens.json"
        facts = json.loads(sidecar.read_text())
        del facts["tokenizer_checksum"]  # as sidecars were before
        sidecar.write_text(json.dumps(facts))
        assert text(tmp_path / source) != before


def test_a_folder_of_another_tokenizer_is_left_alone(corpus, tokenizers, tmp_path, in_process):
    one, two = tokenizers
    for name, make, other in (("bin", prepare, shards), ("shards", shards, prepare)):
        out = tmp_path / name
        make(corpus, out, one)
        before = contents(out)
        with pytest.raises(FileExistsError, match=r"tokenizer.json is another tokenizer than"):
            other(corpus, out, two)
        assert contents(out) == before


def test_a_tokenizer_replaced_while_it_is_in_use(tokenizers, tmp_path):
    one, two = tokenizers
    tokenizer = open_tokenizer(one)
    shutil.copyfile(two, one)
    with pytest.raises(ValueError, match=r"one.json was replaced while it was in use"):
        kept_tokenizer(tokenizer, tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    assert not list(tmp_path.glob("*.partial"))
