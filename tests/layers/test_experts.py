"""Mixtures of experts: the dense form against a loop over tokens, balance, meshes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multiscreen_jax as mj
from multiscreen_jax.layers.experts import ExpertsSpec, TopK
from multiscreen_jax.layers.parameters import facts_of
from multiscreen_jax.mixers import AttentionSpec, Context
from multiscreen_jax.models import HybridConfig, Layer
from multiscreen_jax.objectives import NextToken
from multiscreen_jax.train import config_json
from tests.programs import run_module
from tests.suites import cache_suite

SPEC = ExpertsSpec(num_experts=6, feed_forward_dim=8, router=TopK(k=2, balance=0.5))
CONFIG = HybridConfig(
    vocab_size=61, model_dim=16, num_layers=4, initializer_range=0.2,
    pattern=(Layer(AttentionSpec(num_heads=4), SPEC),),
)  # fmt: skip
X = jax.random.normal(jax.random.key(1), (2, 9, 16))
IDS = jnp.asarray([[1] * 9, [1] * 4 + [0] * 5])


@pytest.fixture(scope="module")
def params():
    module = SPEC.build(CONFIG.common)
    params = module.init(jax.random.key(0), X)["params"]
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def by_tokens(params, x, router):
    """(y, the balance) of every token alone, float64 numpy."""
    y, chosen, probabilities = np.zeros(x.shape), [], []
    for token, row in enumerate(x):
        logits = row @ params["router"]
        p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = np.argsort(-p)[: router.k]
        weights = p[best] / (p[best].sum() if router.normalize else 1)
        for expert, weight in zip(best, weights, strict=True):
            gate, up = row @ params["gate"][expert], row @ params["up"][expert]
            y[token] += weight * (gate / (1 + np.exp(-gate)) * up) @ params["down"][expert]
        chosen.append(np.isin(np.arange(len(p)), best) / router.k)
        probabilities.append(p)
    return y, len(p) * np.sum(np.mean(chosen, 0) * np.mean(probabilities, 0))


@pytest.mark.parametrize("normalize", [True, False])
def test_every_token_takes_its_experts(params, normalize):
    router = dataclasses.replace(SPEC.router, normalize=normalize)
    module = dataclasses.replace(SPEC, router=router).build(CONFIG.common)
    got = module.apply({"params": params}, X)
    want = [by_tokens(params, np.asarray(row, np.float64), router)[0] for row in X]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_balance_counts_tokens_and_no_padding(params):
    module = SPEC.build(CONFIG.common)
    positions = jnp.zeros((2, 9), jnp.int32)
    _, sown = module.apply(
        {"params": params}, X, Context(IDS, positions), mutable=["losses", "metrics"]
    )
    real = np.asarray(X, np.float64)[np.asarray(IDS) != 0]
    _, want = by_tokens(params, real, SPEC.router)
    np.testing.assert_allclose(sown["losses"]["balance"], 0.5 * want, rtol=1e-5)
    assert 1 / 4 <= sown["metrics"]["fullest_expert"] <= 6 / 4


@pytest.mark.slow
def test_a_model_of_experts():
    """It decodes, keeps JSON, and its balance is in the gradient of training alone."""
    model = mj.models.build(CONFIG)
    assert config_json.model_from_dict(config_json.model_to_dict(CONFIG)) == CONFIG
    facts = facts_of(model)["layers"]["feed_forward"]
    assert facts["gate"].axes == ("layers", "expert", "embed", "feed_forward")
    tokens = jax.random.randint(jax.random.key(2), (2, 12), 0, 61)
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    cache_suite.check_every_split_in_one_batch(model, params, tokens[:1], 1e-4)
    batch = {"tokens": tokens}
    found = NextToken().loss(model, params, batch, None, None)
    plain = mj.losses.next_token(model, params, batch)
    np.testing.assert_allclose(found.total / NextToken().count(batch), plain, rtol=1e-6)
    assert found.auxiliary["balance"] >= 4 * 0.5 * 0.99
    assert found.metrics.keys() == {"fullest_expert"}


def test_more_choices_than_experts_are_refused():
    with pytest.raises(ValueError, match="at most num_experts, got k=7, num_experts=6"):
        dataclasses.replace(SPEC, router=TopK(k=7))
    with pytest.raises(ValueError, match="balance must be a finite number >= 0, got -1"):
        TopK(balance=-1)


@pytest.mark.slow
def test_experts_are_divided_over_eight_devices():
    assert run_module("tests.layers.divided_experts").stdout.split() == ["1/2", "1/4", "1/8"]
