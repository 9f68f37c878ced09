"""`python -m tests.train.collectives NAME`: collectives of a step sharded over eight devices."""

import re
import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from multiscreen_jax import sharding
from multiscreen_jax.models.registry import build
from multiscreen_jax.train.command_line import named_config
from multiscreen_jax.train.optimizer import make_optimizer, make_schedule
from multiscreen_jax.train.state import abstract_state
from multiscreen_jax.train.step import make_train_step

_COLLECTIVE = r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\("


def collectives(name: str) -> list[str]:
    config = named_config("experiments.configs", name)
    mesh = sharding.make_mesh(data=1, fsdp=8)
    model = build(config.model)
    optimizer = make_optimizer(config.optim, 10)
    with jax.set_mesh(mesh):
        state = abstract_state(model, optimizer, mesh)
        where = sharding.batch_sharding(mesh)
        batch = {"tokens": jax.ShapeDtypeStruct((8, 65), jnp.int32, sharding=where)}
        places = (
            jax.tree.map(lambda leaf: leaf.sharding, state),
            NamedSharding(mesh, PartitionSpec()),
        )
        step = make_train_step(model, optimizer, make_schedule(config.optim, 10))
        compiled = jax.jit(step, donate_argnums=0, out_shardings=places).lower(state, batch)
        text = compiled.compile().as_text()
    return [f"{kind} {shape}" for shape, kind in re.findall(_COLLECTIVE, text)]


if __name__ == "__main__":
    print("\n".join(collectives(sys.argv[1])))
