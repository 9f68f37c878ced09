"""Accuracy on MQAR against counts made from the logits."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from multiscreen_jax.data import DataConfig, MqarConfig, open_pipeline
from multiscreen_jax.evaluation import evaluate, mqar_accuracy
from multiscreen_jax.models import create

DATA = DataConfig(
    source="mqar",
    tokenizer="numbers",
    sequence_length=16,
    batch_size=8,
    mqar=MqarConfig(vocab_size=8, train=((16, 2, 8),), valid=((16, 2, 11), (24, 3, 5))),
)


@functools.cache
def tiny():
    shape = {"model_dim": 8, "num_layers": 1, "num_heads": 2, "tie_embeddings": False}
    model, _ = create("transformer-8m", vocab_size=8, precision="highest", **shape)
    return model, jax.jit(model.init)(jax.random.key(1), np.zeros((1, 4), np.int32))["params"]


def count_right():
    """{(length, pairs): (right, scored)} from the logits of every row alone."""
    model, params = tiny()
    logits_of = jax.jit(lambda tokens: model.apply({"params": params}, tokens).logits)
    counts = {}
    for batch in open_pipeline(DATA, "valid").iterate():
        scored = batch["loss_mask"] > 0
        pairs = int(scored.sum(1).max())
        length = {2: 16, 3: 24}[pairs]
        best = np.asarray(logits_of(batch["tokens"][:, :length])).argmax(-1)
        right = (best == batch["targets"][:, :length]) & scored[:, :length]
        before = counts.get((length, pairs), (0, 0))
        counts[length, pairs] = (before[0] + right.sum(), before[1] + scored.sum())
    return counts


@pytest.mark.slow
def test_accuracy_of_every_part_and_of_all():
    counts = count_right()
    seen = []
    found = mqar_accuracy(*tiny(), DATA, progress=seen.append)
    assert seen == found["rows"]
    assert [(row["length"], row["pairs"]) for row in seen] == list(counts)
    assert [(row["examples"], row["answers"]) for row in seen] == [(11, 22), (5, 15)]
    for row, (right, scored) in zip(seen, counts.values(), strict=True):
        assert 0 < row["accuracy"] < 1
        assert row["accuracy"] == pytest.approx(right / scored)
    right, scored = np.sum(list(counts.values()), axis=0)
    assert found["accuracy"] == pytest.approx(right / scored)
    shares = [right / scored for right, scored in counts.values()]
    assert found["example_accuracy"] == pytest.approx(np.average(shares, weights=[11, 5]))
    pooled = evaluate(*tiny(), open_pipeline(DATA, "valid"))
    assert pooled["accuracy"] == pytest.approx(found["accuracy"])
    assert pooled["loss"] == pytest.approx(found["loss"], rel=1e-5)


def test_fewer_batches_are_a_part_of_every_part():
    found = mqar_accuracy(*tiny(), DATA, max_batches=1)
    assert [row["examples"] for row in found["rows"]] == [8, 5]


def test_another_source_is_named():
    with pytest.raises(ValueError, match="source is 'sotu'; allowed: mqar"):
        mqar_accuracy(*tiny(), dataclasses.replace(DATA, source="sotu", tokenizer="bytes"))
