"""The train step: accumulation, what a non-finite batch does, what a run does about it."""

import errno

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax import losses
from multiscreen_jax.layers.parameters import facts_of
from multiscreen_jax.models.registry import build, config_for
from multiscreen_jax.objectives import NextToken
from multiscreen_jax.sharding import make_mesh
from multiscreen_jax.train import NonFiniteLoss, OptimConfig, manifest, train
from multiscreen_jax.train import setup as run_setup
from multiscreen_jax.train.optimizer import make_optimizer, make_schedule
from multiscreen_jax.train.reading import steps_in
from multiscreen_jax.train.state import create_state
from multiscreen_jax.train.step import loss_and_gradients, make_train_step
from tests.losses.bigram import Bigram, BigramConfig
from tests.train import small


@pytest.fixture(scope="module")
def model():
    return Bigram(BigramConfig(vocab_size=32))


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    return {
        "tokens": jnp.asarray(random.integers(0, 32, (4, 9)), jnp.int32),
        # Rows count differently, so a mean of means would be another number.
        "loss_mask": jnp.asarray(np.arange(32).reshape(4, 8) < 20, jnp.float32),
    }


def test_accumulation_equals_one_large_batch(model, batch):
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    run = jax.jit(loss_and_gradients, static_argnums=(0, 1, 4))
    loss, gradients, *_ = run(NextToken(), model, params, batch, 1)
    np.testing.assert_allclose(loss, losses.next_token(model, params, batch), rtol=1e-6)
    parts_loss, parts_gradients, *_ = run(NextToken(), model, params, batch, 2)
    np.testing.assert_allclose(parts_loss, loss, rtol=1e-6)
    for got, wanted in zip(
        jax.tree.leaves(parts_gradients), jax.tree.leaves(gradients), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_many_parts_of_bfloat16_parameters_add_up_in_float32():
    model = build(config_for("multiscreen-tiny", param_dtype="bfloat16"))
    tokens = np.random.default_rng(0).integers(0, 255, (256, 17))
    batch = {"tokens": jnp.asarray(tokens, jnp.int32)}
    params = model.init(jax.random.key(0), batch["tokens"][:1, :2])["params"]
    run = jax.jit(loss_and_gradients, static_argnums=(0, 1, 4))
    _, whole, *_ = run(NextToken(), model, params, batch, 1)
    _, parts, *_ = run(NextToken(), model, params, batch, 256)
    for got, wanted in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        assert got.dtype == wanted.dtype == jnp.bfloat16
        got, wanted = (np.asarray(leaf, np.float32) for leaf in (got, wanted))
        # Of bfloat16's 2^-8, in which each part is rounded; 9 % when it also adds them up.
        assert np.linalg.norm(got - wanted) < 0.01 * np.linalg.norm(wanted)


@pytest.mark.parametrize("skip", [True, False])
def test_a_nonfinite_update_is_skipped_or_applied(skip, model, batch):
    config = OptimConfig(learning_rate=0.1, warmup_steps=2)
    optimizer = make_optimizer(config, 10, facts_of(model))
    step = jax.jit(
        make_train_step(model, optimizer, make_schedule(config, 10), skip_nonfinite=skip)
    )
    state = create_state(model, optimizer, make_mesh(), seed=0)
    bad = {**batch, "loss_mask": batch["loss_mask"] * jnp.nan}
    after, metrics = step(state, bad)
    assert not metrics["finite"]
    assert after.step == 1
    finite = all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after.params))
    assert finite == skip
    if skip:
        for new, old in zip(
            jax.tree.leaves((after.params, after.optimizer_state)),
            jax.tree.leaves((state.params, state.optimizer_state)),
            strict=True,
        ):
            np.testing.assert_array_equal(new, old)
        after, metrics = step(after, batch)
        assert metrics["finite"]
        # The skipped step did not advance the warm-up.
        np.testing.assert_allclose(metrics["learning_rate"], 0.1 / 2, rtol=1e-6)


@pytest.fixture
def poisoned(monkeypatch):
    """Batch number 6 (step 7) carries a loss mask of NaN; all others one of ones."""

    def open_poisoned(config, split, where):
        pipeline = original(config, split, where)
        plain = pipeline.batch

        def make(index):
            batch = dict(plain(index))
            value = np.nan if index == 6 and split == "train" else 1.0
            shape = (batch["tokens"].shape[0], batch["tokens"].shape[1] - 1)
            return {**batch, "loss_mask": np.full(shape, value, np.float32)}

        def iterate(start=0):
            while True:
                yield make(start)
                start += 1

        pipeline.batch, pipeline.iterate = make, iterate
        return pipeline

    original = run_setup._open
    monkeypatch.setattr(run_setup, "_open", open_poisoned)


def test_stop_names_the_step_and_keeps_the_last_good_checkpoint(poisoned, text, tmp_path):
    with pytest.raises(NonFiniteLoss, match="step 7 is not finite") as raised:
        train(small.config(text, tmp_path))
    assert "update_norm nan); the newest checkpoint is of step 4. Set" in str(raised.value)
    assert raised.value.exit_code == 3
    assert steps_in(tmp_path / "checkpoints") == [4]
    assert small.records(tmp_path)[-1]["step"] == 7
    assert small.records(tmp_path)[-1]["loss"] == "nan"


def test_a_save_that_fails_as_well_does_not_hide_the_loss(poisoned, text, tmp_path, monkeypatch):
    def fail(folder, facts):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest, "write", fail)
    with pytest.raises(NonFiniteLoss, match="step 7 is not finite") as raised:
        train(small.config(text, tmp_path))
    also = ". Also: could not save checkpoint 4: [Errno 28] No space left on device"
    assert str(raised.value).endswith(also)


def test_stop_speaks_of_no_checkpoint_where_there_is_none(poisoned, text, tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"update_norm nan\)\. Set train.on-nonfinite"):
        train(small.config(text, tmp_path, "--train.checkpoint-every", "0"))


@pytest.mark.slow
def test_skip_goes_on_and_counts(poisoned, text, tmp_path, capsys):
    train(small.config(text, tmp_path, "--train.on-nonfinite", "skip", "--train.steps", "8"))
    assert "step 7 is not finite: its update is skipped" in capsys.readouterr().out
    assert [record["skipped_updates"] for record in small.records(tmp_path)][5:] == [0, 1, 1]
    assert float(small.records(tmp_path)[-1]["loss"]) > 0


@pytest.mark.slow
def test_continue_goes_on_regardless(poisoned, text, tmp_path):
    train(small.config(text, tmp_path, "--train.on-nonfinite", "continue", "--train.steps", "8"))
    assert small.records(tmp_path)[-1]["loss"] == "nan"
