"""`python -m experiments.evaluate` on a run of two steps."""

import csv
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from experiments.configs import mqar_small_transformer, tiny
from experiments.evaluate import Loaded, _data_config, _open, load, run
from experiments.evaluate_config import (
    AbcDigitsGrid,
    EvaluateConfig,
    NeedleGrid,
    PositionsConfig,
    RelevanceConfig,
    TextConfig,
)
from multiscreen_jax import evaluation
from multiscreen_jax.data import DataConfig, MqarConfig, open_pipeline
from multiscreen_jax.data.loading import find_tokenizer
from multiscreen_jax.data.tokenizers import CharacterTokenizer
from multiscreen_jax.inspect import relevance
from multiscreen_jax.train import override, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "two-steps"
    settings = dict(output_dir=str(folder), steps=2, tensorboard=False)
    # The reference op compiles fastest.
    train(override(tiny.config(), train=settings, model=dict(implementation="reference")))
    return folder


def test_perplexity(finished, capsys):
    record = run(EvaluateConfig(run=str(finished), max_batches=3))
    saved = json.loads((finished / "evaluation" / "perplexity.json").read_text())
    assert saved == record
    assert saved["step"] == 2
    assert saved["tokens"] == 3 * 4 * 32
    assert 4 < saved["bits_per_byte"] < 10
    printed = capsys.readouterr().out
    assert "bits_per_byte" in printed
    assert "checkpoint of step 2" in printed


def test_another_text_is_read_whole(finished, tmp_path):
    text = tmp_path / "book.txt"
    text.write_text("call me whatever. " * 20)
    record = run(
        EvaluateConfig(run=str(finished), data=TextConfig(str(text)), output=str(tmp_path))
    )
    assert record["tokens"] == 360  # 360 characters and the end, less the first
    assert record["source"] == str(text)


@pytest.mark.parametrize("name", ["test.jsonl", "valid.jsonl"])
def test_a_folder_that_has_the_split_to_be_read_and_no_other(finished, tmp_path, name):
    (tmp_path / name).write_text('{"text": "call me whatever, and walk on"}\n' * 2)
    config = EvaluateConfig(
        run=str(finished), data=TextConfig(str(tmp_path)), output=str(tmp_path / "out")
    )
    assert run(config)["tokens"] == 59


def test_what_cannot_be_written_is_found_before_anything_is_computed(
    finished, tmp_path, monkeypatch
):
    def never(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(evaluation, "evaluate", never)
    monkeypatch.setattr(evaluation, "loss_by_position", never)
    for task, name in [("perplexity", "perplexity.json"), ("positions", "positions.png")]:
        (tmp_path / name).mkdir()
        with pytest.raises(IsADirectoryError, match=name):
            run(EvaluateConfig(run=str(finished), task=task, output=str(tmp_path)))


def test_a_folder_that_cannot_be_made(finished, monkeypatch):
    def refuse(number):
        def mkdir(self, *args, **kwargs):
            raise OSError(number, os.strerror(number), str(self))

        monkeypatch.setattr(Path, "mkdir", mkdir)

    refuse(errno.EACCES)
    with pytest.raises(ValueError, match=r"^cannot make .*evaluation \(Permission denied\)"):
        run(EvaluateConfig(run=str(finished)))
    refuse(errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        run(EvaluateConfig(run=str(finished)))


def test_text_that_a_tokenizer_cannot_end(tmp_path):
    (tmp_path / "book.txt").write_text("abba" * 99)
    tokenizer = CharacterTokenizer("ab", ends_documents=False)
    config = EvaluateConfig(run="letters", data=TextConfig(str(tmp_path / "book.txt")))
    data = _data_config(config, DataConfig(source="abcdigits"), tokenizer)
    loaded = Loaded(None, None, data, tokenizer, {"run": "letters"}, tmp_path)
    with pytest.raises(ValueError, match=r"documents of .*book.txt need one that ends them, 'cha"):
        _open(loaded)


def test_another_text_ends_its_documents_as_the_token_file_of_the_run(tmp_path):
    words = {"<stop>": 0, "<other>": 1, "we": 2}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<other>"))
    library.save(str(tmp_path / "words.json"))
    settings = {"dtype": "uint16", "vocab_size": 3, "tokenizer": "words.json"}
    (tmp_path / "tokens.json").write_text(json.dumps({**settings, "eos_token": "<stop>"}))
    np.full(100, 2, np.uint16).tofile(tmp_path / "tokens.bin")
    (tmp_path / "book.txt").write_text("we")
    data = DataConfig(source=str(tmp_path / "tokens.bin"), sequence_length=1, batch_size=1)
    tokenizer = find_tokenizer(data)
    config = EvaluateConfig(run="", data=TextConfig(str(tmp_path / "book.txt")))
    other = open_pipeline(_data_config(config, data, tokenizer), "valid")
    assert other.tokenizer.fingerprint == tokenizer.fingerprint
    assert other.tokenizer.eos_id == 0


def test_positions(finished, tmp_path):
    config = EvaluateConfig(
        run=str(finished),
        task="positions",
        sequence_length=64,
        max_batches=2,
        infinite_windows=True,
        positions=PositionsConfig(buckets=4),
        output=str(tmp_path),
    )
    record = run(config)
    assert record["infinite_windows"] is True
    assert [row["end"] for row in record["rows"]] == [16, 32, 48, 64]
    assert (tmp_path / "positions.png").stat().st_size > 3000
    assert len((tmp_path / "positions.csv").read_text().splitlines()) == 5


def test_positions_between_given_edges(finished, tmp_path):
    config = EvaluateConfig(
        run=str(finished),
        task="positions",
        max_batches=1,
        positions=PositionsConfig(edges=(0, 2, 32)),
        output=str(tmp_path),
    )
    assert [(row["start"], row["end"]) for row in run(config)["rows"]] == [(0, 2), (2, 32)]


def test_relevance(finished, tmp_path, capsys):
    config = EvaluateConfig(
        run=str(finished),
        task="relevance",
        output=str(tmp_path),
        relevance=RelevanceConfig(text="my fellow citizens"),
    )
    assert run(config)["tokens"] == 18
    rows = list(csv.DictReader((tmp_path / "tiles.csv").read_text().splitlines()))
    assert [(row["layer"], row["head"]) for row in rows] == [
        ("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")
    ]  # fmt: skip
    assert {path.name for path in tmp_path.glob("*.png")} == {"relevance.png", "windows.png"}
    page = (tmp_path / "explorer.html").read_text()
    assert "<title>two-steps, step 2</title>" in page
    assert '"tokens":["m","y"," ","f"' in page
    assert "accepted" in capsys.readouterr().out


def test_maps_that_are_too_large_replace_nothing(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(relevance, "MAP_BYTES_LIMIT", 100)
    with pytest.raises(ValueError, match="Choose layers"):
        run(EvaluateConfig(run=str(finished), task="relevance", output=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_abcdigits(finished, tmp_path):
    config = EvaluateConfig(
        run=str(finished),
        task="abcdigits",
        output=str(tmp_path),
        abcdigits=AbcDigitsGrid(lengths=(50,), unit="lines", depths=(0.5,), trials=2),
    )
    (row,) = run(config)["rows"]
    assert row["trials"] == 2
    assert (tmp_path / "abcdigits.csv").exists()


def test_needle(finished, tmp_path):
    text = tmp_path / "book.txt"
    text.write_text("Call me whatever. I walked on and on. " * 200)
    config = EvaluateConfig(
        run=str(finished),
        task="needle",
        data=TextConfig(str(text)),
        output=str(tmp_path),
        needle=NeedleGrid(lengths=(600,), depths=(0.2, 0.8), trials=2, keys=2),
    )
    record = run(config)
    assert record["source"] == str(text)
    assert [row["depth"] for row in record["rows"]] == [0.2, 0.8]
    assert (tmp_path / "needle.png").stat().st_size > 3000
    assert len((tmp_path / "needle.csv").read_text().splitlines()) == 3


@pytest.fixture(scope="module")
def recalled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mqar"
    parts = {"train": ((16, 2, 16),), "valid": ((16, 2, 6), (24, 4, 5))}
    data = MqarConfig(vocab_size=16, **parts)
    settings = dict(output_dir=str(folder), steps=3, evaluate_every=2, tensorboard=False)
    base = mqar_small_transformer.config()
    train(
        override(
            base,
            train=settings,
            data=dict(mqar=data, sequence_length=16, batch_size=4),
            model=dict(vocab_size=16, model_dim=8, num_layers=1),
        )
    )
    return folder


@pytest.mark.slow
def test_mqar(recalled, tmp_path, capsys):
    records = [json.loads(line) for line in (recalled / "metrics.jsonl").read_text().splitlines()]
    logged = records[-1]
    assert "validation_bits_per_byte" not in logged
    config = EvaluateConfig(run=str(recalled), task="mqar", output=str(tmp_path))
    record = run(config)
    assert [(row["length"], row["pairs"]) for row in record["rows"]] == [(16, 2), (24, 4)]
    assert [row["answers"] for row in record["rows"]] == [12, 20]
    assert record["accuracy"] == pytest.approx(logged["validation_accuracy"])
    assert record["loss"] == pytest.approx(logged["validation_loss"], rel=1e-5)
    assert "accuracy of all" in capsys.readouterr().out
    assert len((tmp_path / "mqar.csv").read_text().splitlines()) == 3
    whole = run(dataclasses.replace(config, task="perplexity"))
    assert whole["accuracy"] == pytest.approx(record["accuracy"])
    assert "bits_per_byte" not in whole


@pytest.mark.slow
def test_a_transformer_with_another_rope_factor(recalled, tmp_path):
    config = EvaluateConfig(run=str(recalled), task="mqar", output=str(tmp_path))
    losses = {}
    for factor in (None, 1.0, 4.0):
        record = run(dataclasses.replace(config, rope_factor=factor))
        assert record["rope_factor"] == (factor or 1.0)
        losses[factor] = record["loss"]
    assert losses[None] == losses[1.0] != losses[4.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"infinite_windows": True}, "--infinite-windows needs a Multiscreen run, .* Transformer"),
        ({"rope_factor": 0.0}, "rope_factor"),
        ({"task": "needle"}, "needs text to hide numbers in, the run's data is mqar"),
        ({"task": "mqar", "sequence_length": 64}, "sequence_length is 64 .* allowed: 16"),
        ({"data": TextConfig("sotu")}, "tokenizer is 'numbers'; allowed: bytes"),
    ],
)
def test_what_a_run_on_mqar_cannot_be_asked(recalled, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        run(EvaluateConfig(**{"run": str(recalled), **settings}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "mqar"}, "needs a run on mqar, .* is on sotu"),
        ({"data": TextConfig("mqar")}, "tokenizer is 'bytes' with source 'mqar'"),
        ({"task": "needle", "needle": NeedleGrid(lengths=(64,))}, "length is 64; allowed"),
        ({"task": "perplexities"}, "allowed: perplexity, positions, abcdigits, needle, mqar"),
        ({"rope_factor": 2.0}, "--rope-factor needs a Transformer run, .* is a Multiscreen"),
        ({"run": "/no/such/run"}, "no run at /no/such/run"),
        ({"run": "multiscreen-speech"}, r"did you mean multiscreen-speeches"),
        ({"run": "transformer-speeches", "infinite_windows": True}, "--infinite-windows needs a M"),
        ({"step": 7}, "no checkpoint of step 7"),
        (
            {"task": "relevance", "relevance": RelevanceConfig(text="\ud800")},
            "--relevance.text has",
        ),
        ({"sequence_length": 0}, "sequence_length is 0"),
        ({"max_batches": 0}, "max_batches is 0"),
        ({"data": TextConfig("/no/such/text.txt")}, "/no/such/text.txt"),
        ({"task": "abcdigits", "abcdigits": AbcDigitsGrid(lengths=(64,))}, "lengths 64, depths"),
        ({"task": "relevance", "relevance": RelevanceConfig(text="")}, "text is empty"),
        ({"task": "relevance", "relevance": RelevanceConfig(tokens=0)}, "tokens is 0"),
        ({"task": "relevance", "relevance": RelevanceConfig(layers=(9,))}, "layers has 9"),
        ({"output": "/dev/null/x"}, "cannot make /dev/null/x"),
    ],
)
def test_bad_settings_are_one_line(finished, settings, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        run(EvaluateConfig(**{"run": str(finished), **settings}))
    assert "\n" not in str(error.value)


def test_results_of_a_shipped_model_lie_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load(EvaluateConfig(run="transformer-speeches", rope_factor=2.0))
    assert loaded.results == Path("evaluation/transformer-speeches")
    assert loaded.model.config.rope_factor == 2.0


def test_a_run_may_be_called_by_a_number(finished, tmp_path):
    numbered = tmp_path / "7"
    shutil.copytree(finished, numbered)
    for path in (numbered, numbered / "checkpoints", numbered / "checkpoints" / "2"):
        record = run(EvaluateConfig(run=str(path), max_batches=1))
        assert record["step"] == 2
        shutil.rmtree(numbered / "evaluation")


def test_command_line_ends_with_one_line_and_2(tmp_path):
    command = [sys.executable, "-m", "experiments.evaluate", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: no checkpoint in")
    assert len(ended.stderr.splitlines()) == 1
