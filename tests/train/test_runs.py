"""What a run writes: validation, best checkpoints, health, samples; and continued pretraining."""

import functools
import json
import math

import jax
import numpy as np
import optax
import pytest

from multiscreen_jax import losses, sharding
from multiscreen_jax.data import open_pipeline
from multiscreen_jax.train import config_json, load_params, override, train
from multiscreen_jax.train import setup as run_setup
from multiscreen_jax.train import step as run_step
from multiscreen_jax.train.optimizer import make_optimizer, update_count
from multiscreen_jax.train.reading import steps_in
from multiscreen_jax.train.validation import Validation
from tests.data.corpora import metaspace_tokenizer
from tests.train import small
from tests.train.tokenized import settings


@pytest.fixture(scope="module")
def evaluated(text, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated")
    options = {
        "--train.evaluate-every": "6",
        "--train.evaluate-batches": "3",
        "--train.health-every": "6",
        "--train.sample-prompts": "the key",
        "--train.sample-tokens": "4",
        "--train.tensorboard": "True",
    }
    options = [word for option in options.items() for word in option]
    train(small.config(text, output, *options))
    return output


@pytest.mark.slow
def test_validation_is_the_mean_loss_and_bits_per_byte(evaluated):
    record = small.records(evaluated)[-1]
    params, model, config = load_params(evaluated)
    pipeline = open_pipeline(config.data, "valid")
    nats = tokens = text_bytes = 0.0
    token_losses = jax.jit(functools.partial(losses.token_losses, model))
    for index in range(3):
        batch = pipeline.batch(index)
        values, weights = token_losses(params, batch)
        nats += float(np.sum(values * weights))
        tokens += float(np.sum(weights))
        text_bytes += pipeline.target_bytes(batch)
    np.testing.assert_allclose(record["validation_loss"], nats / tokens, rtol=1e-5)
    expected = nats / math.log(2) / text_bytes
    np.testing.assert_allclose(record["validation_bits_per_byte"], expected, rtol=1e-5)


def test_the_best_and_the_last_checkpoint_are_kept(text, tmp_path, monkeypatch):
    scripted = {4: 3.0, 8: 1.0, 12: 2.0}
    values = iter(scripted.values())

    def evaluate(self, params):
        return {"validation_loss": next(values), "validation_bits_per_byte": 1.0}

    monkeypatch.setattr(Validation, "__call__", evaluate)
    options = ["--train.evaluate-every", "4", "--train.keep-best", "1", "--train.keep-last", "1"]
    train(small.config(text, tmp_path, *options))
    assert steps_in(tmp_path / "checkpoints") == [8, 12]
    logged = {
        r["step"]: r["validation_loss"] for r in small.records(tmp_path) if r["step"] % 4 == 0
    }
    assert logged == scripted


@pytest.mark.slow
def test_what_the_run_ran_on_is_recorded_at_every_start(evaluated, text, tmp_path):
    (line,) = (evaluated / "environment.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["implementations"] == {"screening": ["chunked"]}
    assert record["platform"] == "cpu"
    assert record["devices"].startswith("1 x ")
    for steps in ("2", "4"):
        train(small.config(text, tmp_path, "--train.steps", steps))
    lines = (tmp_path / "environment.jsonl").read_text().splitlines()
    assert [json.loads(line)["start"] for line in lines] == [0, 2]


def test_health_is_logged_with_its_step(evaluated):
    by_step = {record["step"]: record for record in small.records(evaluated)}
    assert "health/window/layer_0" in by_step[6]
    assert len(by_step[6]["health/width/layer_1"]) == 5
    assert not any(name.startswith("health") for name in by_step[5])


def test_samples_pictures_and_tensorboard_are_written(evaluated):
    assert (evaluated / "samples.txt").read_text().startswith("the key")
    assert len(list((evaluated / "pictures").glob("*.png"))) == 2
    assert list((evaluated / "tensorboard").iterdir())


@pytest.mark.slow
def test_a_model_with_more_tokens_than_the_tokenizer_ends_with_its_sample(text, tmp_path):
    options = ["--data.tokenizer", "characters", "--train.sample-prompts", "the key"]
    train(small.config(text, tmp_path, *options, "--train.steps", "1"))
    assert (tmp_path / "samples.txt").read_text().startswith("the key")


def test_the_steps_asked_for_are_profiled(text, tmp_path):
    # The last step asked for is never made; what was traced is written all the same.
    train(small.config(text, tmp_path, "--train.steps", "3", "--train.profile-steps", "3", "9"))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_speed_and_flops_are_positive_and_consistent(whole_run, text):
    config = small.config(text, whole_run[0])
    tokens = config.data.batch_size * config.data.sequence_length
    flops = 3 * config.data.batch_size * config.model.forward_flops(config.data.sequence_length)
    for record in small.records(whole_run[0]):
        ratio = record["model_flops_per_second"] / record["tokens_per_second"]
        np.testing.assert_allclose(ratio, flops / tokens, rtol=1e-6)
        assert record["tokens_per_second"] > 0


@pytest.mark.slow
def test_an_optimizer_of_other_rules_starts_anew(whole_run, text, tmp_path, monkeypatch, capsys):
    """As where a parameter of the model follows another rule than it did: only weights come."""

    def with_more_state(*arguments):
        return optax.chain(make_optimizer(*arguments), optax.trace(0.0))

    for module in (run_setup, run_step):
        monkeypatch.setattr(module, "make_optimizer", with_more_state)
    options = ["--train.init-from", str(whole_run[0]), "--train.steps", "1"]
    result = train(small.config(text, tmp_path, *options))
    printed = capsys.readouterr().out
    assert "has an optimizer state of other rules; here it starts anew" in printed
    assert "the learning rate starts at 0.00390625, after 0 inherited updates" in printed
    pairs = zip(jax.tree.leaves(result.params), jax.tree.leaves(whole_run[1]), strict=True)
    moved = [np.abs(a - b).max() for a, b in pairs]
    assert 0 < max(moved) < 0.01  # one step of warm-up away from where the other run ended


@pytest.mark.slow
def test_continued_pretraining_inherits_state_and_updates_the_trained_length(
    whole_run, text, tmp_path, monkeypatch, capsys
):
    source, params = whole_run
    started = []

    def inherit(*arguments):
        state, *others = inherited(*arguments)
        started.append(jax.device_get(state))
        return state, *others

    inherited = run_setup._inherit
    monkeypatch.setattr(run_setup, "_inherit", inherit)
    options = ["--train.init-from", str(source), "--data.sequence-length", "48"]
    options += ["--train.steps", "2", "--data.batch-size", "2"]
    train(small.config(text, tmp_path, *options))
    (state,) = started
    assert state.step == 0
    assert update_count(state.optimizer_state) == small.STEPS
    for got, wanted in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(got, wanted)
    # No second warm-up: the first step already runs at the peak.
    assert small.records(tmp_path)[0]["learning_rate"] == 2.0**-6
    printed = capsys.readouterr().out
    assert "data.sequence-length 16 -> 48" in printed
    assert "the learning rate starts at 0.015625, after 12 inherited updates" in printed
    _, model, config = load_params(tmp_path)
    assert model.config.trained_length == config.data.sequence_length == 48
    # The same command again continues the new run and does not start over.
    options[options.index("2")] = "3"
    train(small.config(text, tmp_path, *options))
    assert f"continues {tmp_path} after step 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"model\.num-layers was 2, now 3"):
        train(small.config(text, tmp_path / "other", *options, "--model.num-layers", "3"))


@pytest.mark.slow
def test_the_longest_trained_length_is_inherited(whole_run, text, tmp_path, capsys):
    options = ["--train.init-from", str(whole_run[0]), "--data.sequence-length", "8"]
    for steps in ("1", "2"):  # a new run, and its continuation
        train(small.config(text, tmp_path, *options, "--train.steps", steps))
        _, model, config = load_params(tmp_path)
        assert (model.config.trained_length, config.data.sequence_length) == (16, 8)
    assert config_json.from_dict(json.loads((tmp_path / "config.json").read_text())) == config
    assert "trained-length" not in capsys.readouterr().out


def test_bytes_of_text_stay_on_the_host(text, tmp_path, monkeypatch):
    placed = []

    def place(batch, where):
        placed.append(sorted(batch))
        return original(batch, where)

    original = sharding.place_batch
    monkeypatch.setattr(sharding, "place_batch", place)
    config = settings(tmp_path / "run", text, metaspace_tokenizer(tmp_path / "tokenizer.json"))
    config = override(config, train={"steps": 1, "evaluate_every": 1, "evaluate_batches": 1})
    assert "target_bytes" in open_pipeline(config.data).batch(0)
    train(config)
    assert placed == [["tokens"], ["loss_mask", "row_bytes", "tokens"]]
    assert small.records(tmp_path / "run")[-1]["validation_bits_per_byte"] > 0
