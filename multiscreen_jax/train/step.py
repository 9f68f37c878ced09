"""One training step, as a pure function to be jitted."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from multiscreen_jax.layers.parameters import facts_of
from multiscreen_jax.models.registry import build
from multiscreen_jax.objectives import NextToken, Objective
from multiscreen_jax.train.config import ExperimentConfig
from multiscreen_jax.train.optimizer import make_optimizer, make_schedule, update_count
from multiscreen_jax.train.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
NEXT_TOKEN = NextToken()


def loss_and_gradients(
    objective: Objective,
    model: nn.Module,
    params: Any,
    batch: Batch,
    parts: int = 1,
    key: jax.Array | None = None,
    carry: Any = None,
) -> tuple[jax.Array, Any, Metrics, Any]:
    """(loss, gradients, what else was found, next carry) of a batch, in `parts` added up.

    The loss is the mean over all of the batch that counts, not a mean of the parts' means, so that
    parts change memory and rounding and nothing else. Sums are kept in float32 at least: in
    bfloat16, whose numbers have 8 bits, each of many parts would be rounded away more and more.
    Gradients are those of the loss and of the auxiliary losses `losses/NAME`, which are, like
    `metrics/NAME`, means over the parts.
    """
    count = jnp.maximum(objective.count(batch), jnp.finfo(jnp.float32).tiny)

    def share(params: Any, part: Batch, key: Any, carry: Any) -> tuple[jax.Array, Any]:
        found = objective.loss(model, params, part, key, carry)
        loss = found.total / count
        more = {f"losses/{name}": x / parts for name, x in found.auxiliary.items()}
        told = {f"metrics/{name}": x / parts for name, x in found.metrics.items()}
        return sum(more.values(), loss), ({"loss": loss, **more, **told}, found.carry)

    differentiate = jax.value_and_grad(share, has_aux=True)
    if parts == 1:
        (_, (told, carry)), gradients = differentiate(params, batch, key, carry)
        return told.pop("loss"), gradients, told, carry

    def add(sums: Any, part: tuple[Any, ...]) -> tuple[Any, Any]:
        number, *inputs = part
        own = None if key is None else jax.random.fold_in(key, number)
        (_, (told, carry)), gradients = differentiate(params, inputs[0], own, inputs[1])
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, (told, gradients)), carry

    def zeros(leaf: Any) -> jax.Array:
        return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))

    # Every parts-th row together: each device keeps its own rows.
    divided, carries = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0),
        (batch, carry),
    )
    first = jax.tree.map(lambda x: x[0], (divided, carries))
    _, (told, _) = jax.eval_shape(share, params, first[0], key, first[1])
    start = jax.tree.map(zeros, (told, params))
    (told, totals), carries = jax.lax.scan(add, start, (jnp.arange(parts), divided, carries))
    gradients = jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), totals, params)
    carry = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), carries)
    return told.pop("loss"), gradients, told, carry


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    parts: int = 1,
    skip_nonfinite: bool = False,
    objective: Objective = NEXT_TOKEN,
    seed: int = 0,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """step(state, batch) -> (state, metrics).

    Metrics, all scalars: loss, gradient_norm (before clipping), update_norm, learning_rate,
    finite (loss and both norms are), and `losses/NAME` and `metrics/NAME` of what the model sows.
    With `skip_nonfinite` an update that is not finite changes nothing but the step's number, and
    the optimizer does not count it. What is random follows from `seed` and the step's number.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        loss, gradients, told, carry = loss_and_gradients(
            objective, model, state.params, batch, parts, key, state.carry
        )
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
        new = TrainState(state.step + 1, params, optimizer_state, carry)
        if skip_nonfinite:
            old = state.replace(step=new.step)
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        return new, {**metrics, **told, "finite": finite}

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
        config.objective,
        config.train.seed,
    )


def jit_step(step: Callable, state: TrainState, mesh: Mesh) -> Any:
    """The step jitted: the state (arrays or ShapeDtypeStructs) is donated and stays where it is."""
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=(where, whole))
