"""One training step, as a pure function to be jitted."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from multiscreen_jax import losses
from multiscreen_jax.layers.parameters import facts_of
from multiscreen_jax.models.registry import build
from multiscreen_jax.train.config import ExperimentConfig
from multiscreen_jax.train.optimizer import make_optimizer, make_schedule, update_count
from multiscreen_jax.train.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def loss_and_gradients(
    model: nn.Module, params: Any, batch: Batch, parts: int = 1
) -> tuple[jax.Array, Any]:
    """Mean loss of a batch and its gradients, computed in `parts` parts that are added up.

    The mean is over all targets of the batch that count, not a mean of the parts' means, so that
    parts change memory and rounding and nothing else. Sums are kept in float32 at least: in
    bfloat16, whose numbers have 8 bits, each of many parts would be rounded away more and more.
    """
    _, weights = losses.targets_and_weights(batch)
    count = jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)

    def share(params: Any, part: Batch) -> jax.Array:
        return losses.loss_sum(model, params, part)[0] / count

    if parts == 1:
        return jax.value_and_grad(share)(params, batch)

    def add(carry: tuple[jax.Array, Any], part: Batch) -> tuple[tuple[jax.Array, Any], None]:
        found = jax.value_and_grad(share)(params, part)
        return jax.tree.map(lambda total, x: total + x.astype(total.dtype), carry, found), None

    def zeros(leaf: Any) -> jax.Array:
        return jnp.zeros_like(leaf, jnp.promote_types(leaf.dtype, jnp.float32))

    # Every parts-th row together: each device keeps its own rows.
    divided = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0), batch
    )
    shapes = jax.eval_shape(share, params, jax.tree.map(lambda x: x[0], divided))
    start = jnp.zeros(shapes.shape, shapes.dtype), jax.tree.map(zeros, params)
    loss, totals = jax.lax.scan(add, start, divided)[0]
    return loss, jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), totals, params)


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    parts: int = 1,
    skip_nonfinite: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """step(state, batch) -> (state, metrics).

    Metrics, all scalars: loss, gradient_norm (before clipping), update_norm, learning_rate,
    finite (loss and both norms are). With `skip_nonfinite` an update that is not finite changes
    nothing but the step's number, and the optimizer does not count it.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        loss, gradients = loss_and_gradients(model, state.params, batch, parts)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradients),
            "update_norm": optax.tree.norm(updates),
            "learning_rate": schedule(update_count(state.optimizer_state)),
        }
        finite = (
            jnp.isfinite(loss)
            & jnp.isfinite(metrics["gradient_norm"])
            & jnp.isfinite(metrics["update_norm"])
        )
        new = TrainState(step=state.step + 1, params=params, optimizer_state=optimizer_state)
        if skip_nonfinite:
            old = state.replace(step=new.step)
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        return new, {**metrics, "finite": finite}

    return step


def experiment_step(
    config: ExperimentConfig,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step that a config trains with."""
    model = build(config.model)
    return make_train_step(
        model,
        make_optimizer(config.optim, config.train.steps, facts_of(model)),
        make_schedule(config.optim, config.train.steps),
        config.train.accumulate,
        config.train.on_nonfinite == "skip",
    )


def jit_step(step: Callable, state: TrainState, mesh: Mesh) -> Any:
    """The step jitted: the state (arrays or ShapeDtypeStructs) is donated and stays where it is."""
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=(where, whole))
