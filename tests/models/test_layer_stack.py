"""LayerStack: one tree, one result, scanned or looped over."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax.layers.stack import LayerStack


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, layer_cache, shared):
        y = jnp.tanh(nn.Dense(self.width, name="mix")(x)) * shared["scale"]
        self.sow("intermediates", "mixed", y)
        return x + y, None if layer_cache is None else layer_cache + jnp.sum(y)


X = jax.random.normal(jax.random.key(0), (2, 3, 4))
SHARED = {"scale": jnp.float32(0.5)}
CACHE = jnp.arange(3.0)


def _stack(unroll):
    return LayerStack(Block, {"width": 4}, num_layers=3, unroll=unroll)


def test_scan_and_loop_agree():
    variables = {u: _stack(u).init(jax.random.key(1), X, None, SHARED)["params"] for u in (0, 1)}
    shapes = jax.tree.map(jnp.shape, variables[0])
    assert shapes == {"mix": {"kernel": (3, 4, 4), "bias": (3, 4)}}, "stacked, no extra level"
    jax.tree.map(np.testing.assert_array_equal, variables[0], variables[1])
    kernel = variables[0]["mix"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1]), "each layer draws its own parameters"

    results = [
        _stack(u).apply({"params": variables[0]}, X, CACHE, SHARED, mutable=["intermediates"])
        for u in (False, True)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *results)
    (x, caches), sown = results[0]
    assert sown["intermediates"]["mixed"][0].shape == (3, 2, 3, 4)
    np.testing.assert_allclose(x - X, sown["intermediates"]["mixed"][0].sum(0), rtol=1e-5)
    assert caches.shape == (3,)


def test_the_loop_works_on_concrete_values():
    seen = []

    class Looking(Block):
        def __call__(self, x, layer_cache, shared):
            seen.append(isinstance(x, jax.core.Tracer))
            return x, layer_cache

    LayerStack(Looking, {"width": 4}, num_layers=3, unroll=True).apply({"params": {}}, X)
    assert seen == [False, False, False]


def test_unknown_remat():
    with pytest.raises(ValueError, match=r"remat must be one of .*'dots'.*, got 'some'"):
        LayerStack(Block, {"width": 4}, 3, remat="some").init(jax.random.key(0), X, None, SHARED)
