"""What a training step changes, and where it lies."""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from multiscreen_jax import sharding
from multiscreen_jax.layers.parameters import facts_of


class TrainState(flax.struct.PyTreeNode):
    """Steps taken (= number of the next batch), parameters and optimizer state."""

    step: jax.Array
    params: Any
    optimizer_state: Any


def abstract_params(model: nn.Module) -> Any:
    """The parameters' tree of ShapeDtypeStructs; nothing is computed."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]


def abstract_state(
    model: nn.Module, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """ShapeDtypeStructs of a state with the sharding of every array on this mesh."""
    shapes = jax.eval_shape(functools.partial(_initial, model, optimizer), jax.random.key(0))
    whole = NamedSharding(mesh, PartitionSpec())
    params = sharding.parameter_shardings(shapes.params, facts_of(model), mesh)
    placed = shapes.replace(
        step=whole,
        params=params,
        optimizer_state=sharding.like_parameters(
            shapes.optimizer_state, shapes.params, params, mesh
        ),
    )
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        placed,
    )


def create_state(
    model: nn.Module, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int
) -> TrainState:
    """Initial parameters, made where they will lie: the same values on every mesh."""
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, optimizer, mesh))
    make = jax.jit(functools.partial(_initial, model, optimizer), out_shardings=where)
    return make(jax.random.key(seed))


def _initial(
    model: nn.Module, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    params = model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, optimizer_state=optimizer.init(params)
    )
