"""Loss of a split against a dense float64 count: every target once, however it is batched."""

import functools
import math
from typing import Any

import jax
import numpy as np
import pytest

from multiscreen_jax.data import DataConfig, open_pipeline
from multiscreen_jax.evaluation import evaluate, loss_by_position
from multiscreen_jax.evaluation.perplexity import _sums
from multiscreen_jax.jitted import jitted
from multiscreen_jax.models import Multiscreen, MultiscreenConfig

LENGTH = 16
TEXTS = ("the first document\n" * 9, "a second: é\n" * 7, "third" * 11)


@functools.cache
def tiny() -> tuple[Multiscreen, Any]:
    config = MultiscreenConfig(
        vocab_size=256,
        model_dim=8,
        num_layers=1,
        num_heads=2,
        key_dim=4,
        value_dim=4,
        precision="highest",
        implementation="reference",
    )
    model = Multiscreen(config)
    return model, jax.jit(model.init)(jax.random.key(1), np.zeros((1, 4), np.int32))["params"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)
    return folder


def open_valid(corpus, **settings):
    config = DataConfig(
        source=str(corpus), valid_source=str(corpus), sequence_length=LENGTH, **settings
    )
    return open_pipeline(config, "valid")


@functools.cache
def dense_nats() -> tuple[np.ndarray, np.ndarray]:
    """(nats, position in the row) of every target of the stream, in float64 from the logits."""
    model, params = tiny()
    stream = np.concatenate([np.frombuffer((t + "\0").encode(), np.uint8) for t in TEXTS])
    nats, positions = [], []
    for first in range(0, len(stream) - 1, LENGTH):
        row = np.zeros(LENGTH + 1, np.int32)
        piece = stream[first : first + LENGTH + 1]
        row[: len(piece)] = piece
        logits = _logits(model, params, row[None, :-1])
        shifted = logits - logits.max(-1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        count = len(piece) - 1
        nats += list(-log_probs[np.arange(count), row[1 : count + 1]])
        positions += list(range(count))
    assert len(nats) == len(stream) - 1
    return np.array(nats), np.array(positions)


def _logits(model, params, tokens):
    return np.asarray(_apply(model, params, tokens)[0], np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, tokens):
    return model.apply({"params": params}, tokens).logits


@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_target_counts_once_whatever_the_batches(corpus, batch_size):
    model, params = tiny()
    found = evaluate(model, params, open_valid(corpus, batch_size=batch_size))
    nats, _ = dense_nats()
    text_bytes = sum(len(text.encode()) for text in TEXTS) - 1  # the first byte is no target
    assert found["tokens"] == len(nats)
    assert found["bytes"] == text_bytes
    assert found["loss"] == pytest.approx(nats.mean(), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(nats.mean()), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats.sum() / math.log(2) / text_bytes, rel=1e-6)


def test_loss_by_position(corpus):
    model, params = tiny()
    nats, positions = dense_nats()
    rows = loss_by_position(model, params, open_valid(corpus, batch_size=4), buckets=[0, 1, 5, 16])
    assert [(row["start"], row["end"]) for row in rows] == [(0, 1), (1, 5), (5, 16)]
    for row in rows:
        inside = (positions >= row["start"]) & (positions < row["end"])
        assert row["tokens"] == inside.sum()
        assert row["loss"] == pytest.approx(nats[inside].mean(), rel=1e-6)
        assert row["perplexity"] == pytest.approx(math.exp(nats[inside].mean()), rel=1e-5)
    even = loss_by_position(model, params, open_valid(corpus, batch_size=4), buckets=5)
    assert [row["start"] for row in even] == [0, 3, 6, 10, 13]
    assert sum(row["tokens"] for row in even) == len(nats)


def test_max_batches_reads_the_first_ones(corpus):
    model, params = tiny()
    nats, _ = dense_nats()
    found = evaluate(model, params, open_valid(corpus, batch_size=4), max_batches=2)
    assert found["tokens"] == 8 * LENGTH
    assert found["loss"] == pytest.approx(nats[: 8 * LENGTH].mean(), rel=1e-6)


def test_packed_documents_score_nothing_across_a_border(corpus):
    model, params = tiny()
    pipeline = open_valid(corpus, batch_size=4, packing="segments")
    found = evaluate(model, params, pipeline)
    assert found["tokens"] == len(dense_nats()[0]) - (len(TEXTS) - 1)


class Weighted:
    """A pipeline of one batch whose targets weigh differently."""

    num_batches = 1
    batch = {  # noqa: RUF012
        "tokens": np.arange(2 * (LENGTH + 1), dtype=np.int32).reshape(2, -1) % 256,
        "loss_mask": np.resize(np.array([1.0, 0.25, 0.0], np.float32), (2, LENGTH)),
    }

    def iterate(self, start):
        yield self.batch

    def row_bytes(self, batch):
        return np.array([4, 6], np.int32)


def test_weights_shape_the_loss_and_not_the_information():
    model, params = tiny()
    tokens, weights = Weighted.batch["tokens"], Weighted.batch["loss_mask"].astype(np.float64)
    logits = np.stack([_logits(model, params, row[None, :-1]) for row in tokens])
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats = -np.take_along_axis(log_probs, tokens[:, 1:, None], -1)[..., 0]
    found = evaluate(model, params, Weighted())
    assert found["loss"] == pytest.approx((nats * weights).sum() / weights.sum(), rel=1e-5)
    bits = (nats * (weights > 0)).sum() / math.log(2)
    assert found["bits_per_byte"] == pytest.approx(bits / 10, rel=1e-5)
    assert found["tokens"] == (weights > 0).sum()
    right = (logits.argmax(-1) == tokens[:, 1:]) & (weights > 0)
    assert found["accuracy"] == pytest.approx(right.sum() / found["tokens"])


def test_accuracy_is_the_share_of_best_guesses():
    model, params = tiny()
    tokens = Weighted.batch["tokens"]
    logits = np.stack([_logits(model, params, row[None, :-1]) for row in tokens])
    answers = logits.argmax(-1).astype(np.int32)
    wrong = np.arange(LENGTH) % 4 == 0
    pipeline = Weighted()
    pipeline.batch = {**Weighted.batch, "targets": np.where(wrong, (answers + 1) % 256, answers)}
    scored = Weighted.batch["loss_mask"] > 0
    expected = (scored & ~wrong).sum() / scored.sum()
    assert 0 < expected < 1
    assert evaluate(model, params, pipeline)["accuracy"] == pytest.approx(expected)


def test_one_compiled_step_for_all_calls(corpus):
    model, params = tiny()
    evaluate(model, params, open_valid(corpus, batch_size=4))
    before = jitted(_sums, model, params)._cache_size()
    evaluate(model, jax.tree.map(lambda x: x + 1, params), open_valid(corpus, batch_size=4))
    assert jitted(_sums, model, params)._cache_size() == before


def test_bad_arguments():
    model, params = tiny()

    class Endless(Weighted):
        num_batches = None

    class Empty(Weighted):
        num_batches = 0

    with pytest.raises(ValueError, match="endless"):
        evaluate(model, params, Endless())
    with pytest.raises(ValueError, match="no batch"):
        evaluate(model, params, Empty())
    with pytest.raises(ValueError, match="max_batches is 0"):
        evaluate(model, params, Weighted(), max_batches=0)
    for buckets in (0, [0], [4, 2], [0, 99]):
        with pytest.raises(ValueError, match="buckets is"):
            loss_by_position(model, params, Weighted(), buckets=buckets)
