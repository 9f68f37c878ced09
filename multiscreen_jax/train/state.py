"""What a training step changes, and where it lies."""

import functools
from collections.abc import Callable
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
    """Steps taken (= number of the next batch), parameters and optimizer state.

    `carry` is what the objective hands from step to step, arrays [rows, ...]; None: nothing.
    """

    step: jax.Array
    params: Any
    optimizer_state: Any
    carry: Any = None


def abstract_params(model: nn.Module) -> Any:
    """The parameters' tree of ShapeDtypeStructs; nothing is computed."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]


InitCarry = Callable[[], Any]


def _no_carry() -> None:
    return None


def abstract_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    init_carry: InitCarry = _no_carry,
) -> TrainState:
    """ShapeDtypeStructs of a state with the sharding of every array on this mesh."""
    make = functools.partial(_initial, model, optimizer, init_carry)
    shapes = jax.eval_shape(make, jax.random.key(0))
    whole = NamedSharding(mesh, PartitionSpec())
    params = sharding.parameter_shardings(shapes.params, facts_of(model), mesh)
    placed = shapes.replace(
        step=whole,
        params=params,
        optimizer_state=sharding.like_parameters(
            shapes.optimizer_state, shapes.params, params, mesh
        ),
        carry=jax.tree.map(lambda _: sharding.batch_sharding(mesh), shapes.carry),
    )
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        placed,
    )


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    init_carry: InitCarry = _no_carry,
) -> TrainState:
    """Initial parameters, made where they will lie: the same values on every mesh."""
    abstract = abstract_state(model, optimizer, mesh, init_carry)
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    make = functools.partial(_initial, model, optimizer, init_carry)
    return jax.jit(make, out_shardings=where)(jax.random.key(seed))


def _initial(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    init_carry: InitCarry,
    key: jax.Array,
) -> TrainState:
    params = model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer_state=optimizer.init(params),
        carry=init_carry(),
    )
