"""Products and logits by the model's rules: every matrix of every branch, and a cap on logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multiscreen_jax as mj
from multiscreen_jax import losses
from multiscreen_jax.layers.logits import soft_cap
from multiscreen_jax.layers.parameters import facts_of
from multiscreen_jax.layers.products import Dense
from multiscreen_jax.sharding import path_name
from multiscreen_jax.train import config_json
from multiscreen_jax.train.state import abstract_params
from tests.marks import slow_unless
from tests.suites.contract import ALL, TOKENS, config_of, params_of

SEEN = []


@dataclasses.dataclass(frozen=True)
class Noted(Dense):
    """The product, and a note of every matrix."""

    def __call__(self, subscripts, x, matrix, dtype, precision, out):
        SEEN.append(matrix.shape)
        return super().__call__(subscripts, x, matrix, dtype, precision, out)


@dataclasses.dataclass(frozen=True)
class Signs(Dense):
    """Only the signs of weights, and their mean size."""

    def __call__(self, subscripts, x, matrix, dtype, precision, out):
        matrix = jnp.sign(matrix) * jnp.mean(jnp.abs(matrix))
        return super().__call__(subscripts, x, matrix, dtype, precision, out)


@pytest.mark.parametrize(
    "name", slow_unless(("diff-v2",), [n for n in ALL if hasattr(config_of(n), "product")])
)
def test_all_matrices_of_branches_are_multiplied_by_the_rule(name):
    model = mj.models.build(config_of(name, product=Noted()))
    params, facts = abstract_params(model), facts_of(model)
    SEEN.clear()
    jax.eval_shape(lambda p: model.apply({"params": p}, TOKENS).logits, params)
    matrices = set()
    for stage in model.config.stages():
        leaves = jax.tree_util.tree_leaves_with_path(params[stage.name])
        for (path, leaf), its in zip(leaves, jax.tree.leaves(facts[stage.name]), strict=True):
            # Screening has a product of its own, whose layout is faster.
            if "embed" in its.axes and leaf.ndim > 2 and "tiles" not in path_name(path):
                matrices.add(leaf.shape[1:])
    assert matrices <= set(SEEN)
    assert len(set(SEEN)) > 2


def test_a_rule_of_ones_own_is_part_of_the_config():
    config = config_of("transformer", product=Signs())
    assert config_json.model_from_dict(config_json.model_to_dict(config)) == config
    got = mj.models.build(config).apply({"params": params_of("transformer")}, TOKENS).logits
    want = params_of("transformer")
    layers = {
        branch: {name: _signs(x) if x.ndim > 2 else x for name, x in arrays.items()}
        for branch, arrays in want["layers"].items()
    }
    plain = mj.models.build(config_of("transformer"))
    want = plain.apply({"params": {**want, "layers": layers}}, TOKENS).logits
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="product must be a Product, got 'bits'"):
        config_of("transformer", product="bits")


def _signs(x):
    mean = jnp.mean(jnp.abs(x), axis=tuple(range(1, x.ndim)), keepdims=True)
    return jnp.sign(x) * mean


@pytest.mark.parametrize("chunk", [None, 4])
def test_the_cap_is_in_the_loss_and_its_gradient(chunk):
    rng = np.random.default_rng(0)
    hidden, table = rng.standard_normal((2, 7, 8)), 3 * rng.standard_normal((11, 8))
    targets, weights = rng.integers(0, 11, (2, 7)), rng.uniform(0, 1, (2, 7))

    def direct(hidden, table):
        logits = soft_cap(hidden @ table.T, 2.0)
        chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        nats = jax.nn.logsumexp(logits, -1) - chosen
        return jnp.sum(nats * weights)

    def ours(hidden, table):
        return losses.cross_entropy(hidden, table, targets, weights, chunk=chunk, cap=2.0)

    with jax.enable_x64(True):
        arrays = jnp.asarray(hidden), jnp.asarray(table)
        got, want = (jax.value_and_grad(f, (0, 1))(*arrays) for f in (ours, direct))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_capped_logits_of_a_model():
    params = params_of("transformer")
    plain, capped = (
        mj.models.build(config_of("transformer", **fields)) for fields in ({}, {"logit_cap": 1.5})
    )
    want = soft_cap(plain.apply({"params": params}, TOKENS).logits, 1.5)
    got = capped.apply({"params": params}, TOKENS).logits
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert np.abs(got).max() < 1.5
    batch = {"tokens": TOKENS}
    nats, _ = losses.token_losses(capped, params, batch)
    table = jax.nn.log_softmax(got[:, :-1])
    wanted = -np.take_along_axis(np.asarray(table), TOKENS[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(nats, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses.next_token(capped, params, batch), wanted.mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="logit_cap must be a finite number > 0, got 0"):
        config_of("transformer", logit_cap=0)
