"""Schedules, their indexing, and which parameters decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiscreen_jax.layers.parameters import Facts
from multiscreen_jax.train import OptimConfig, transformer_recipe
from multiscreen_jax.train.optimizer import (
    make_optimizer,
    make_schedule,
    update_count,
)

MATRIX, SCALE = Facts(("embed", "heads")), Facts(("heads",), decay=False)


def rates(steps, **fields):
    config = OptimConfig(learning_rate=2.0, **fields)
    return np.asarray(jax.vmap(make_schedule(config, steps))(jnp.arange(steps)))


def test_warmup_is_the_papers():
    expected = [2.0 * min(step + 1, 4) / 4 for step in range(8)]
    np.testing.assert_allclose(rates(8, warmup_steps=4), expected, rtol=1e-6)


def test_no_warmup_starts_at_the_peak():
    np.testing.assert_allclose(rates(3, warmup_steps=0), [2.0, 2.0, 2.0])


def test_cosine_and_linear_end_at_the_fraction_and_stay():
    linear = rates(12, warmup_steps=2, schedule="linear", end_fraction=0.25, decay_steps=10)
    expected = [1.0, 2.0] + [2.0 - 1.5 * i / 8 for i in range(1, 9)] + [0.5, 0.5]
    np.testing.assert_allclose(linear, expected, rtol=1e-6)
    cosine = rates(11, warmup_steps=1, schedule="cosine", end_fraction=0.0)
    expected = [1 + np.cos(np.pi * i / 10) for i in range(11)]
    np.testing.assert_allclose(cosine, expected, atol=1e-6)


def test_the_optimizer_is_adamw_with_clipping():
    config = transformer_recipe(0.1, warmup_steps=0, clip_norm=0.5)
    params = {"layers": {"query": jnp.array([[1.0, -2.0]]), "scale": jnp.array([3.0])}}
    gradients = {"layers": {"query": jnp.array([[3.0, 4.0]]), "scale": jnp.array([0.0])}}
    facts = {"layers": {"query": MATRIX, "scale": SCALE}}
    optimizer = make_optimizer(config, 10, facts)
    updates, state = optimizer.update(gradients, optimizer.init(params), params)
    # At the first step Adam's direction is sign(g), whatever the clipping; decay adds 0.1 p.
    np.testing.assert_allclose(
        updates["layers"]["query"], [[-0.1 * (1 + 0.1), -0.1 * (1 - 0.2)]], rtol=1e-5
    )
    np.testing.assert_allclose(updates["layers"]["scale"], [0.0])
    moment = optax.tree_utils.tree_get(state, "mu")["layers"]["query"]
    np.testing.assert_allclose(moment, 0.1 * np.array([[0.3, 0.4]]), rtol=1e-5)
    assert update_count(state) == 1


def test_every_config_has_a_state_of_the_same_structure():
    params = {"rows": jnp.ones((2, 2))}
    facts = {"rows": MATRIX}
    plain = make_optimizer(OptimConfig(), 10, facts).init(params)
    other = make_optimizer(transformer_recipe(1e-3, schedule="cosine"), 10, facts).init(params)
    assert jax.tree.structure(plain) == jax.tree.structure(other)


def test_rules_by_group():
    """The sign's group moves by its rate, what is frozen stays, and neither is clipped with."""
    params = {"bias": jnp.array([0.5, 0.5]), "fixed": jnp.ones(2), "query": jnp.ones((1, 2))}
    gradients = {"bias": jnp.array([9.0, -1e-3]), "fixed": jnp.ones(2), "query": jnp.ones((1, 2))}
    facts = {
        "bias": Facts(("heads",), decay=False, rule="sign"),
        "fixed": Facts(("heads",), rule="frozen"),
        "query": MATRIX,
    }
    config = transformer_recipe(0.1, warmup_steps=0, clip_norm=0.5, sign_rate=0.01)
    optimizer = make_optimizer(config, 10, facts)
    updates, state = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["bias"], [-0.01, 0.01])
    np.testing.assert_array_equal(updates["fixed"], 0)
    alone = make_optimizer(config, 10, {"query": MATRIX})
    only = {"query": params["query"]}
    wanted, _ = alone.update({"query": gradients["query"]}, alone.init(only), only)
    np.testing.assert_array_equal(updates["query"], wanted["query"])
    assert update_count(state) == 1
    moments = jax.tree.leaves(optax.tree_utils.tree_get(state, "mu"))
    assert [leaf.shape for leaf in moments] == [(1, 2)]


@pytest.mark.parametrize("peak", [1e-3, 6e-4])
def test_recipes(peak):
    paper = OptimConfig()
    assert (paper.learning_rate, paper.b1, paper.b2) == (2.0**-4, 0.9, 0.95)
    assert (paper.weight_decay, paper.clip_norm, paper.schedule) == (0.0, None, "constant")
    baseline = transformer_recipe(peak)
    assert (baseline.learning_rate, baseline.weight_decay, baseline.clip_norm) == (peak, 0.1, 1.0)
