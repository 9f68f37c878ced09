"""`python -m tests.layers.divided_experts`: a step of training on meshes with an expert axis.

Ends with an error unless losses, what is sown, and parameters after the step are those of one
device; prints what share of the experts a device holds.
"""

import math

import jax
import numpy as np
import optax

import multiscreen_jax as mj
from multiscreen_jax import sharding
from multiscreen_jax.train.state import create_state
from multiscreen_jax.train.step import make_train_step
from tests.layers.test_experts import CONFIG

MESHES = (
    {"data": 4, "expert": 2},
    {"fsdp": 2, "expert": 2, "seq": 2},
    {"expert": 2, "fsdp": 2, "model": 2},
)
TOKENS = np.random.default_rng(0).integers(0, 61, (8, 17), np.int32)


def step(model, mesh):
    with jax.set_mesh(mesh):
        state = create_state(model, optax.sgd(0.1), mesh, seed=0)
        held = state.params["layers"]["feed_forward"]["gate"]
        share = math.prod(held.sharding.shard_shape(held.shape)) / held.size
        take = jax.jit(make_train_step(model, optax.sgd(0.1), optax.constant_schedule(0.1)))
        batch = {"tokens": jax.device_put(TOKENS, sharding.batch_sharding(mesh))}
        state, metrics = take(state, batch)
        return jax.device_get((state.params, metrics)), share


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    fields = {"dtype": "float64", "param_dtype": "float64"}
    model = mj.models.build(type(CONFIG)(**{**vars(CONFIG), **fields}))
    one = sharding.make_mesh(data=1, devices=jax.devices()[:1])
    want, _ = step(model, one)
    assert want[1]["losses/balance"] > 0
    for sizes in MESHES:
        got, share = step(model, sharding.make_mesh(**{"data": 1, **sizes}))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, want
        )
        print(f"1/{round(1 / share)}")
