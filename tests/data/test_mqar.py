"""Associative recall against a count of every outcome of its definition."""

import collections
import itertools

import numpy as np
import pytest

from multiscreen_jax.data import DataConfig, MqarConfig, open_pipeline
from multiscreen_jax.data.mqar import (
    MIXED_TRAIN,
    MIXED_VALID,
    ORIGINAL_TRAIN,
    ORIGINAL_VALID,
    example,
)
from tests.marks import slow_unless

EXAMPLES = 20_000


def draw(length, pairs, count=EXAMPLES, **settings):
    return [example(np.random.default_rng(i), length, pairs, **settings) for i in range(count)]


def assert_distributed(outcomes, probabilities):
    """Pearson's statistic of the outcomes is within five deviations of what chance gives."""
    counts = collections.Counter(outcomes)
    assert set(counts) <= set(probabilities)
    total = sum(counts.values())
    assert sum(probabilities.values()) == pytest.approx(1)
    statistic = sum(
        (counts[key] - total * share) ** 2 / (total * share) for key, share in probabilities.items()
    )
    freedom = len(probabilities) - 1
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def uniform(outcomes):
    outcomes = list(outcomes)
    return dict.fromkeys(outcomes, 1 / len(outcomes))


@pytest.mark.parametrize("power", slow_unless((0.01,), (0.01, 1.0, 2.5)))
def test_places_keys_and_values_have_the_defined_distribution(power):
    # 2 pairs in 16 tokens of a vocabulary of 12: keys 1-5, values 6-11, 6 places from 4 on.
    drawn = draw(16, 2, vocab_size=12, power=power, random_non_queries=False)
    weights = [power * (i + 1) ** (power - 1) for i in range(6)]
    total = sum(weights)
    places = {
        (i, j): weights[i] / total * weights[j] / (total - weights[i])
        for i, j in itertools.permutations(range(6), 2)
    }
    found = [
        tuple((int(np.flatnonzero(inputs[4:] == inputs[2 * pair])[0]) / 2) for pair in range(2))
        for inputs, _ in drawn
    ]
    assert_distributed(found, places)
    keys = [tuple(inputs[0:4:2].tolist()) for inputs, _ in drawn]
    assert_distributed(keys, uniform(itertools.permutations(range(1, 6), 2)))
    values = [tuple(inputs[1:4:2].tolist()) for inputs, _ in drawn]
    assert_distributed(values, uniform(itertools.permutations(range(6, 12), 2)))


def test_fillers_are_uniform_over_the_whole_vocabulary():
    drawn = draw(16, 2, 4000, vocab_size=12)
    fillers = [int(t) for inputs, labels in drawn for t in inputs[4:][labels[4:] == 0]]
    assert len(fillers) == 4000 * 10
    assert_distributed(fillers, uniform(range(12)))


@pytest.mark.parametrize(("length", "pairs"), [(64, 4), (64, 16), (256, 64), (10, 2)])
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("random_non_queries", [True, False])
def test_structure(length, pairs, passes, random_non_queries):
    length += 2 * pairs * (passes - 1)
    settings = {"num_passes": passes, "random_non_queries": random_non_queries}
    for inputs, labels in draw(length, pairs, 20, vocab_size=512, **settings):
        assert inputs.dtype == labels.dtype == np.int32
        assert len(inputs) == len(labels) == length
        once, context = inputs[: 2 * pairs], inputs[: 2 * pairs * passes]
        np.testing.assert_array_equal(context, np.tile(once, passes))
        answers = dict(zip(once[::2].tolist(), once[1::2].tolist(), strict=True))
        assert len(answers) == len(set(answers.values())) == pairs
        assert all(1 <= key < 256 for key in answers)
        assert all(256 <= value < 512 for value in answers.values())
        asked = np.flatnonzero(labels)
        assert all(place >= len(context) and place % 2 == 0 for place in asked)
        assert sorted(inputs[asked].tolist()) == sorted(answers)
        for place in asked:
            assert labels[place] == answers[int(inputs[place])]
        if not random_non_queries:
            others = np.setdiff1d(np.arange(len(context), length), asked)
            assert (inputs[others] == 0).all()


def open_mqar(split="train", seed=0, batch_size=4, **settings):
    defaults = {"vocab_size": 32, "train": ((16, 3, 6), (24, 2, 4)), "valid": ((32, 4, 5),)}
    config = MqarConfig(**{**defaults, **settings})
    data = DataConfig(
        source="mqar",
        tokenizer="numbers",
        sequence_length=max(length for length, _, _ in config.train),
        batch_size=batch_size,
        seed=seed,
        mqar=config,
    )
    return open_pipeline(data, split)


def answers_per_row(batch):
    return (batch["loss_mask"] > 0).sum(axis=1).tolist()


def test_batches_keep_to_one_part_and_start_over():
    pipeline = open_mqar()
    assert pipeline.num_batches is None
    assert pipeline.vocab_size == pipeline.tokenizer.vocab_size == 32
    batches = [pipeline.batch(index) for index in range(6)]
    assert [answers_per_row(batch) for batch in batches[:3]] == [[3] * 4, [3, 3, 0, 0], [2] * 4]
    for first, again in zip(batches[:3], batches[3:], strict=True):
        for name in first:
            np.testing.assert_array_equal(first[name], again[name])
    rows = np.concatenate([batch["tokens"] for batch in batches[:3]])
    assert len({row.tobytes() for row in rows}) == 10 + 1  # ten examples, and padding
    for batch in batches:
        assert batch["tokens"].shape == (4, 25)
        assert batch["targets"].shape == batch["loss_mask"].shape == (4, 24)
        assert {array.dtype.name for array in batch.values()} == {"int32", "float32"}
    assert (batches[0]["tokens"][:, 16:] == 0).all()  # examples of 16 in rows of 24


def test_targets_are_the_values_of_the_keys_asked_for():
    for batch in (open_mqar().batch(0), open_mqar("valid").batch(0)):
        rows, places = np.nonzero(batch["loss_mask"])
        pairs = len(places) // 4
        for row, place in zip(rows, places, strict=True):
            tokens = batch["tokens"][row]
            shown = tokens[: 2 * pairs].reshape(-1, 2)
            (value,) = shown[shown[:, 0] == tokens[place], 1]
            assert batch["targets"][row, place] == value


def test_validation_reads_every_example_once_at_its_own_length():
    pipeline = open_mqar("valid", valid=((32, 4, 5), (16, 2, 3)))
    assert pipeline.num_batches == 3
    batches = list(pipeline.iterate())
    assert [answers_per_row(b) for b in batches] == [[4] * 4, [4, 0, 0, 0], [2, 2, 2, 0]]
    assert batches[0]["tokens"].shape == (4, 33)
    assert pipeline.target_bytes(batches[0]) == 0
    assert np.isnan(pipeline.unigram_bits_per_byte())


def test_an_example_depends_on_seed_split_and_task_alone():
    tokens = open_mqar().batch(2)["tokens"][:, :24]
    alone = open_mqar(train=((24, 2, 4),)).batch(0)["tokens"][:, :24]
    np.testing.assert_array_equal(tokens, alone)
    other = open_mqar(train=((24, 2, 4),), seed=1).batch(0)["tokens"][:, :24]
    valid = open_mqar("valid", valid=((24, 2, 4),)).batch(0)["tokens"][:, :24]
    assert not {row.tobytes() for row in tokens} & {row.tobytes() for row in [*other, *valid]}


def test_the_published_settings_are_allowed():
    MqarConfig(train=MIXED_TRAIN, valid=MIXED_VALID)
    for train, valid in zip(ORIGINAL_TRAIN, ORIGINAL_VALID, strict=True):
        MqarConfig(train=(train,), valid=(valid,), random_non_queries=False)
    assert sum(examples for _, _, examples in MIXED_TRAIN) == 180_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": ((16, 5, 9),)}, "train has length 16 with 5 pairs; allowed: at least 20"),
        ({"valid": ((20, 4, 9),), "num_passes": 2}, "valid has length 20 .* at least 24"),
        ({"train": ((17, 2, 9),)}, "train has length 17; allowed: an even length"),
        ({"valid": ((64, 16, 9),)}, "valid has 16 pairs; allowed: at most 15, the keys of vocab"),
        ({"train": ((16, 2, 0),)}, r"train has \(16, 2, 0\); allowed: .*integers >= 1"),
        ({"train": ((16, 2),)}, r"train has \(16, 2\); allowed: \(length, pairs, examples\)"),
        ({"train": ((16, 2.0, 9),)}, r"train has \(16, 2.0, 9\)"),
        ({"train": ()}, r"train is \(\); allowed: at least one part"),
        ({"train": ((16, 2, 9), (16, 2, 8))}, "length 16 with 2 pairs twice"),
        ({"vocab_size": 3}, "vocab_size is 3; allowed: an integer >= 4"),
        ({"power": 0}, "power is 0; allowed: a number from 1e-06"),
        ({"num_passes": 0}, "num_passes is 0"),
        ({"random_non_queries": 1}, "random_non_queries is 1; allowed: True, False"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        MqarConfig(**{"vocab_size": 32, **settings})
    assert "\n" not in str(caught.value)
