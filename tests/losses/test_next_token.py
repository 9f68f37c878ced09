"""The chunked loss against the dense formula, its gradients, its memory, and what it scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax import losses
from tests.losses.bigram import Bigram, BigramConfig
from tests.programs import run_module


def dense(hidden, table, targets, weights):
    """The definition, with the whole [B, T, O] in memory."""
    log_probability = jax.nn.log_softmax(jnp.einsum("btd,od->bto", hidden, table))
    picked = jnp.take_along_axis(log_probability, targets[..., None], -1)[..., 0]
    return -jnp.sum(picked * weights)


def example(batch, length, width, vocabulary, dtype=np.float64, seed=0):
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(batch, length, width)).astype(dtype)
    table = (random.normal(size=(vocabulary, width)) / 2).astype(dtype)
    targets = random.integers(0, vocabulary, (batch, length)).astype(np.int32)
    weights = random.choice([0.0, 0.25, 1.0], (batch, length)).astype(dtype)
    return hidden, table, targets, weights


@pytest.fixture
def model_and_params():
    model = Bigram(BigramConfig())
    return model, model.init(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))["params"]


@pytest.mark.parametrize("chunk", [1, 3, 7, 13, 20])
def test_values_and_gradients_equal_the_dense_form_in_float64(chunk):
    with jax.enable_x64(True):
        case = example(2, 13, 5, 11)

        def ours(hidden, table, targets, weights):
            return 1.7 * losses.cross_entropy(hidden, table, targets, weights, chunk)

        def theirs(*arguments):
            return 1.7 * dense(*arguments)

        value, gradients = jax.value_and_grad(ours, (0, 1))(*case)
        expected, expected_gradients = jax.value_and_grad(theirs, (0, 1))(*case)
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, expected, rtol=1e-13)
        np.testing.assert_allclose(ours(*case), expected, rtol=1e-13)
        for got, wanted in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-13)


def test_bfloat16_inputs_keep_float32_logits_and_sums():
    hidden, table, targets, weights = example(2, 64, 16, 50, np.float32)
    half = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(table, jnp.bfloat16)
    exact = (np.asarray(half[0], np.float32), np.asarray(half[1], np.float32))
    value, (dh, dt) = jax.value_and_grad(losses.cross_entropy, (0, 1))(*half, targets, weights, 16)
    expected, (eh, et) = jax.value_and_grad(dense, (0, 1))(*exact, targets, weights)
    assert value.dtype == jnp.float32
    assert dh.dtype == dt.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for got, wanted in ((dh, eh), (dt, et)):
        error = np.linalg.norm(np.asarray(got, np.float32) - wanted) / np.linalg.norm(wanted)
        assert error < 6e-3


def test_large_logits_give_finite_losses_and_gradients():
    hidden, table, targets, weights = example(1, 6, 4, 9, np.float32)
    value, gradients = jax.value_and_grad(losses.cross_entropy, (0, 1))(
        hidden * 300, table * 300, targets, weights
    )
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in gradients)


def test_token_losses_are_the_dense_ones():
    hidden, table, targets, _ = example(2, 10, 4, 9, np.float32)
    got = losses.token_cross_entropy(hidden, table, targets, chunk=4)
    logits = jnp.einsum("btd,od->bto", hidden, table)
    wanted = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(got, wanted, rtol=2e-6)


def test_hits_are_where_the_target_is_the_largest_logit():
    hidden, table, _, _ = example(2, 10, 4, 9, np.float32)
    order = jnp.argsort(jnp.einsum("btd,od->bto", hidden, table), axis=-1)
    targets = jnp.stack([order[0, :, -1], order[1, :, -2]])
    nats, hits = losses.token_hits(hidden, table, targets, chunk=4)
    np.testing.assert_array_equal(nats, losses.token_cross_entropy(hidden, table, targets, chunk=4))
    assert hits[0].all()
    assert not hits[1].any()
    _, ties = losses.token_hits(jnp.zeros_like(hidden), table, targets)
    assert not ties.any()


def test_given_targets_take_the_place_of_the_next_token(model_and_params):
    model, params = model_and_params
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 12)), jnp.int32)
    answers = jnp.asarray(np.random.default_rng(1).integers(0, 40, (2, 11)), jnp.int32)
    mask = jnp.zeros((2, 11)).at[:, 3].set(1)
    batch = {"tokens": tokens, "targets": answers, "loss_mask": mask}
    logits = model.apply({"params": params}, tokens[:, :-1])
    wanted = -jax.nn.log_softmax(logits[:, 3])[jnp.arange(2), answers[:, 3]].mean()
    np.testing.assert_allclose(losses.next_token(model, params, batch), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("batch", "length", "vocabulary", "budget", "chunk"),
    [(16, 256, 257, 2**24, 256), (1, 10, 1, 8, 5), (4, 100, 1000, 10, 1), (1, 7, 2, 8, 4)],
)
def test_chunks_fit_the_budget_and_are_even(batch, length, vocabulary, budget, chunk):
    assert losses.chunk_length(batch, length, vocabulary, budget) == chunk


def test_memory_is_far_below_the_logits():
    batch, length, width, vocabulary = 2, 512, 16, 8192
    shapes = (
        jax.ShapeDtypeStruct((batch, length, width), jnp.float32),
        jax.ShapeDtypeStruct((vocabulary, width), jnp.float32),
        jax.ShapeDtypeStruct((batch, length), jnp.int32),
        jax.ShapeDtypeStruct((batch, length), jnp.float32),
    )

    def temporary(function):
        step = jax.jit(jax.value_and_grad(function, (0, 1)))
        return step.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * batch * length * vocabulary
    assert temporary(lambda h, t, y, w: losses.cross_entropy(h, t, y, w, 32)) < logits / 4
    assert temporary(dense) >= logits  # the check above can tell


def test_targets_across_documents_and_padding_are_not_scored():
    batch = {
        "tokens": jnp.arange(8, dtype=jnp.int32)[None],
        "segment_ids": jnp.array([[1, 1, 1, 2, 2, 3, 0, 0]], jnp.int32),
        "loss_mask": jnp.array([[1, 0.5, 1, 1, 1, 1, 1]], jnp.float32),
    }
    targets, weights = losses.targets_and_weights(batch)
    np.testing.assert_array_equal(targets[0], np.arange(1, 8))
    np.testing.assert_array_equal(weights[0], [1, 0.5, 0, 1, 0, 0, 0])


def test_a_batch_without_anything_to_score_has_loss_zero(model_and_params):
    batch = {"tokens": jnp.ones((1, 5), jnp.int32), "loss_mask": jnp.zeros((1, 4))}
    value, gradients = jax.value_and_grad(
        lambda params: losses.next_token(model_and_params[0], params, batch)
    )(model_and_params[1])
    assert value == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradients))


def test_next_token_of_a_model_is_the_mean_over_scored_targets(model_and_params):
    model, params = model_and_params
    random = np.random.default_rng(0)
    tokens = jnp.asarray(random.integers(0, 40, (2, 12)), jnp.int32)
    segments = jnp.asarray([[1] * 5 + [2] * 7, [1] * 9 + [0] * 3], jnp.int32)
    batch = {"tokens": tokens, "segment_ids": segments}

    def by_logits(params):
        logits = model.apply({"params": params}, tokens[:, :-1], segments[:, :-1])
        log_probability = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(log_probability, tokens[:, 1:, None], -1)[..., 0]
        scored = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        return -jnp.sum(jnp.where(scored, picked, 0)) / jnp.sum(scored)

    value, gradients = jax.value_and_grad(lambda params: losses.next_token(model, params, batch))(
        params
    )
    expected, expected_gradients = jax.value_and_grad(by_logits)(params)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for got, wanted in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
    values, weights = losses.token_losses(model, params, batch)
    np.testing.assert_allclose(jnp.sum(values * weights) / jnp.sum(weights), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"tokens": np.zeros((3,), np.int32)}, "tokens"),
        ({"tokens": np.zeros((1, 1), np.int32)}, "length"),
        (
            {"tokens": np.zeros((1, 4), np.int32), "segment_ids": np.ones((1, 3), np.int32)},
            "segment_ids",
        ),
        ({"tokens": np.zeros((1, 4), np.int32), "loss_mask": np.ones((1, 4))}, "loss_mask"),
        (
            {"tokens": np.zeros((1, 4), np.int32), "targets": np.ones((1, 4), np.int32)},
            "one shorter than the tokens",
        ),
    ],
)
def test_wrong_shapes_are_named(batch, message):
    with pytest.raises(ValueError, match=message):
        losses.targets_and_weights({name: jnp.asarray(x) for name, x in batch.items()})


def test_an_array_is_no_batch():
    with pytest.raises(TypeError, match=r"a batch is a dict with tokens \[B, T\+1\], got ndarray"):
        losses.next_token(None, {}, np.zeros((2, 5), np.int32))


@pytest.mark.slow
def test_eight_devices_divide_any_vocabulary():
    run_module("tests.losses.divided")
