"""Every architecture as an nnx module: same parameters, logits and gradients, and it trains."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from multiscreen_jax import losses
from multiscreen_jax.models import MultiscreenConfig, TransformerConfig, build
from tests.marks import slow_unless
from tests.models import linear_family

SHAPE = {"vocab_size": 61, "model_dim": 16, "num_layers": 2, "num_heads": 2}
CONFIGS = {
    **linear_family.CONFIGS,
    "multiscreen": MultiscreenConfig(**SHAPE, key_dim=4, value_dim=6, window_threshold=9.0),
    "transformer": TransformerConfig(**SHAPE),
}
# "gdn" has a table of its own for the logits.
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 13)).astype(np.int32)


def mean_loss(bridged):
    logits = bridged(TOKENS[:, :-1]).logits
    return optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS[:, 1:]).mean()


@nnx.jit
def train_step(bridged, optimizer):
    loss, gradients = nnx.value_and_grad(mean_loss)(bridged)
    optimizer.update(bridged, gradients)
    return loss, gradients


@pytest.mark.parametrize("name", slow_unless((), CONFIGS, exhaustive=CONFIGS.keys() - {"gdn"}))
def test_an_nnx_module(name):
    model = build(CONFIGS[name])
    bridged = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0))
    nnx.jit(lambda module: nnx.bridge.lazy_init(module, TOKENS[:, :-1]) and None)(bridged)
    params = nnx.to_pure_dict(nnx.state(bridged, nnx.Param))
    own = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, own)

    logits = nnx.jit(lambda module: module(TOKENS).logits)(bridged)
    want = jax.jit(lambda p: model.apply({"params": p}, TOKENS).logits)(params)
    np.testing.assert_array_equal(logits, want)

    loss, gradients = jax.jit(
        jax.value_and_grad(lambda p: losses.next_token(model, p, {"tokens": TOKENS}))
    )(params)
    optimizer = nnx.Optimizer(bridged, optax.adam(1e-3), wrt=nnx.Param)
    found, bridged_gradients = train_step(bridged, optimizer)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)  # noqa: E731
    jax.tree.map(close, nnx.to_pure_dict(bridged_gradients), gradients)
    assert train_step(bridged, optimizer)[0] < loss
