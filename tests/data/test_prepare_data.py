import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments.prepare_data import PrepareConfig, lost_text, main, prepare
from multiscreen_jax.data import DataConfig, open_pipeline
from tests.data import tokenizer_files
from tests.data.corpora import TEXTS, byte_level_tokenizer, write_json_lines

ROOT = Path(__file__).parents[2]


def run(inputs, output, **options):
    console = Console(file=io.StringIO(), width=100)
    inputs = tuple(str(path) for path in inputs)
    facts = prepare(PrepareConfig(inputs, output, **options), console)
    return facts, console.file.getvalue()


@pytest.mark.parametrize("tokenizer", ["bytes", "characters", "gpt2"])
def test_token_files_give_the_batches_of_their_documents(tmp_path, tokenizer):
    corpus = write_json_lines(tmp_path / "c.jsonl.xz")
    out = tmp_path / "out"
    facts, printed = run([corpus], out, tokenizer=tokenizer, valid_fraction=0.2)
    assert (facts["train"]["num_documents"], facts["valid"]["num_documents"]) == (32, 8)
    assert printed.startswith("train: 100% 40 documents")
    shared = {"packing": "segments", "sequence_length": 16, "batch_size": 4}
    direct = DataConfig(source=str(corpus), tokenizer=tokenizer, valid_fraction=0.2, **shared)
    mapped = DataConfig(
        source=str(out / "train.bin"), valid_source=str(out / "valid.bin"), **shared
    )
    for split in ("train", "valid"):
        one, other = open_pipeline(direct, split), open_pipeline(mapped, split)
        assert one.num_batches == other.num_batches
        for key, value in one.batch(1).items():
            np.testing.assert_array_equal(other.batch(1)[key], value)
    kinds = ("bin", "documents.npy", "json")
    assert {path.name for path in out.iterdir()} == {
        f"{name}.{kind}" for name in ("train", "valid") for kind in kinds
    }


def test_one_long_document_is_cut(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("chapter " * 100)
    facts, _ = run([path], tmp_path / "out", tokenizer="bytes", valid_fraction=0.1)
    assert (facts["train"]["num_tokens"], facts["valid"]["num_tokens"]) == (721, 80)
    assert facts["valid"]["num_documents"] == 1


def test_valid_inputs_tokenizer_json_and_overwriting(tmp_path):
    train = write_json_lines(tmp_path / "t.jsonl")
    valid = write_json_lines(tmp_path / "v.jsonl", TEXTS[:3])
    tokenizer = byte_level_tokenizer(tmp_path / "small.json")
    out = tmp_path / "out"
    options = {"tokenizer": str(tokenizer)}
    facts, _ = run([train], out, valid_inputs=(str(valid),), **options)
    assert facts["train"]["tokenizer"] == "tokenizer.json"
    assert (facts["train"]["num_documents"], facts["valid"]["num_documents"]) == (40, 3)
    pipeline = open_pipeline(DataConfig(source=str(out / "train.bin"), sequence_length=16))
    assert pipeline.vocab_size == 300
    with pytest.raises(FileExistsError, match=r"train.bin exists; allowed: .* --overwrite"):
        run([train], out, **options)
    run([train], out, tokenizer="bytes", valid_fraction=0.0, overwrite=True)
    assert not (out / "valid.bin").exists()
    assert not (out / "valid.json").exists()


def test_failures_leave_old_files_and_nothing_half_written(tmp_path):
    good = write_json_lines(tmp_path / "good.jsonl")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"text": 1}\n')
    out = tmp_path / "out"
    run([good], out, tokenizer="bytes")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match=r"bad.jsonl:2: field 'text' is int"):
        run([bad], out, tokenizer="bytes", overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    empty = write_json_lines(tmp_path / "empty.jsonl", ["", ""])
    with pytest.raises(ValueError, match="the corpus is empty: 1 files without any text"):
        run([empty], out, tokenizer="bytes", overwrite=True)
    with pytest.raises(ValueError, match=r"train.bin is a token file already"):
        run([out / "train.bin"], tmp_path / "other")
    with pytest.raises(ValueError, match="no inputs are given"):
        run([], out)


def test_command_line(tmp_path, monkeypatch, capsys):
    corpus = write_json_lines(tmp_path / "c.jsonl")
    arguments = [str(corpus), "--tokenizer", "bytes", "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "experiments.prepare_data", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train.bin: ") == 1
    monkeypatch.setattr(sys, "argv", ["prepare_data", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "train.bin exists" in line
    monkeypatch.setattr(sys, "argv", ["prepare_data", *arguments, "--valid-fraction", "2"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "DataConfig.valid_fraction is 2.0" in capsys.readouterr().err


def test_a_terminal_gets_a_bar(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    corpus = write_json_lines(tmp_path / "c.jsonl")
    prepare(PrepareConfig((str(corpus),), tmp_path / "out"), console)
    assert "100%" in console.file.getvalue()
    assert "40 documents" in console.file.getvalue()


@pytest.mark.parametrize("kind", ["Unigram", "byte level, NFKC"])
def test_bytes_behind_tokens_are_prepared_with_them(tmp_path, kind):
    texts = [f"The cat {n} sat — 日本, ﬁ. 한" for n in range(40)]
    corpus = write_json_lines(tmp_path / "c.jsonl", ["   ", *texts] if kind == "Unigram" else texts)
    tokenizer = str(tokenizer_files.write(tmp_path / "t.json", kind))
    out = tmp_path / "out"
    facts, _ = run([corpus], out, tokenizer=tokenizer, valid_fraction=0.2)
    shared = {"packing": "segments", "sequence_length": 16, "batch_size": 4}
    direct = DataConfig(source=str(corpus), tokenizer=tokenizer, valid_fraction=0.2, **shared)
    mapped = DataConfig(
        source=str(out / "train.bin"), valid_source=str(out / "valid.bin"), **shared
    )
    for split in ("train", "valid"):
        one, other = open_pipeline(direct, split), open_pipeline(mapped, split)
        assert one.lost_share == other.lost_share == facts[split]["lost_share"]
        for key, value in one.batch(1).items():
            np.testing.assert_array_equal(other.batch(1)[key], value)
        if split == "valid":
            counts = [sum(map(p.target_bytes, p.iterate())) for p in (one, other)]
            assert counts[0] == counts[1] > 8 * 30
    assert lost_text(facts["train"]).endswith("lost as unknown tokens") == (kind == "Unigram")
    run([corpus], out, tokenizer="bytes", overwrite=True, valid_fraction=0.2)
    assert not list(out.glob("*.bytes*")) + list(out.glob("*.partial*"))
