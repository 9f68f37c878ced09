"""What the summary of a run compares with: token frequencies, of the batches that it looks at."""

import math

import numpy as np
import pytest

from multiscreen_jax.data import open_pipeline
from multiscreen_jax.objectives import NextToken
from multiscreen_jax.train import override, train
from multiscreen_jax.train.validation import Validation
from tests.data import tokenizer_files
from tests.train import small

BATCHES = 2


@pytest.fixture
def pipeline(text, tmp_path):
    config = small.config(text, tmp_path)
    config = override(config, data={"valid_fraction": 0.5, "batch_size": 4})
    return open_pipeline(config.data, "valid")


def test_frequencies_are_of_the_batches_that_are_evaluated(pipeline):
    found = Validation(NextToken(), None, pipeline, BATCHES, None).unigram_bits_per_byte
    targets = np.concatenate([pipeline.batch(i)["tokens"][:, 1:].ravel() for i in range(BATCHES)])
    counts = np.unique(targets, return_counts=True)[1]
    bits = -sum(n * math.log2(n / len(targets)) for n in counts)
    text_bytes = sum(pipeline.target_bytes(pipeline.batch(i)) for i in range(BATCHES))
    assert found == pytest.approx(bits / text_bytes)
    assert found != pytest.approx(pipeline.unigram_bits_per_byte(), rel=1e-6)


def test_of_all_batches_it_is_nearly_the_whole_split(pipeline):
    # Nearly: nothing predicts the split's first token.
    found = Validation(NextToken(), None, pipeline, 10**6, None).unigram_bits_per_byte
    assert found == pytest.approx(pipeline.unigram_bits_per_byte(), rel=1e-3)


def test_every_process_would_find_the_same(pipeline):
    whole = Validation(NextToken(), None, pipeline, BATCHES, None).unigram_bits_per_byte
    assert (
        Validation(NextToken(), None, pipeline.take([2]), BATCHES, None).unigram_bits_per_byte
        == whole
    )


def test_a_start_reads_nothing_and_the_summary_only_these_batches(pipeline, monkeypatch):
    rows = type(pipeline._rows)
    original, read = rows.__getitem__, []

    def count(self, index):
        read.append(index)
        return original(self, index)

    def scan(self):
        raise AssertionError("the whole split is read")

    monkeypatch.setattr(rows, "__getitem__", count)
    monkeypatch.setattr(rows, "token_counts", scan)
    validation = Validation(NextToken(), None, pipeline, BATCHES, None)
    assert not read
    record = {"validation_loss": 1.0, "validation_bits_per_byte": 2.0}
    alone = f"{validation.unigram_bits_per_byte:.3f}"
    said = validation.summary(record)
    assert said.endswith(f"on {BATCHES} batches, where token frequencies alone give {alone}")
    ahead = pipeline.config.prefetch * pipeline.config.batch_size
    assert BATCHES * 4 <= len(read) <= BATCHES * 4 + ahead + 4 < len(pipeline._rows)


def test_what_the_tokenizer_loses_is_said_beside_bits_per_byte(pipeline):
    validation = Validation(NextToken(), None, pipeline, BATCHES, None)
    record = {"validation_loss": 1.0, "validation_bits_per_byte": 2.0}
    assert "lost" not in validation.summary(record)
    said = validation.summary({**record, "validation_lost_share": 0.031})
    assert said.endswith("; the tokenizer lost 3.10% of the bytes")


@pytest.mark.slow
def test_a_run_warns_of_what_its_tokenizer_loses(tmp_path, capsys):
    text = tmp_path / "c.txt"
    text.write_text("The cat sat on the mat. " * 200 + "한국어 " * 60)
    tokenizer = tokenizer_files.write(tmp_path / "t.json", "WordPiece")
    options = (
        *("--data.tokenizer", str(tokenizer)),
        *("--data.valid-source", str(text)),
        *("--data.batch-size", "4"),
        *("--model.vocab-size", "320"),
        *("--train.evaluate-every", "1"),
        *("--train.evaluate-batches", "1000"),
    )
    config = small.config(text, tmp_path / "run", *options)
    train(override(config, train={"steps": 1, "checkpoint_every": 0}))
    said = capsys.readouterr().out.splitlines()
    share = 540 / 5400
    (line,) = [line for line in said if line.startswith("warning: ")]
    assert line.endswith(f"loses {share:.2%} of the train text's bytes: they are unknown to it")
    (record,) = small.records(tmp_path / "run")
    assert record["validation_lost_share"] == pytest.approx(share)
    assert any("10.00% of the bytes unknown" in line for line in said)
    pipeline = open_pipeline(config.data, "valid")
    nats = record["validation_loss"] * (len(pipeline.tokenizer.encode(text.read_text())))
    assert record["validation_bits_per_byte"] == pytest.approx(
        nats / math.log(2) / (5400 - 3), rel=1e-4
    )  # "the" is no target
