"""Learning-rate schedules and the optimizer of an OptimConfig."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from multiscreen_jax.train.config import OptimConfig


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate of update s = 0, 1, ...

    Warm-up: peak * min(s + 1, W) / W, so that update 0 already moves and update W - 1 is the first
    at the peak. Afterwards `constant`, or `cosine` / `linear` from the peak at update W - 1 to
    end_fraction * peak at the last update (`decay_steps`, by default `steps`), constant from there.
    """
    warmup = max(1, config.warmup_steps)
    last = max((config.decay_steps or steps) - 1, warmup)

    def schedule(count: Any) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        rise = jnp.minimum(count + 1, warmup) / warmup
        done = jnp.clip((count - (warmup - 1)) / (last - (warmup - 1)), 0, 1)
        if config.schedule == "cosine":
            shape = 0.5 * (1 + jnp.cos(jnp.pi * done))
        elif config.schedule == "linear":
            shape = 1 - done
        else:
            return config.learning_rate * rise
        return (
            config.learning_rate * rise * (config.end_fraction + (1 - config.end_fraction) * shape)
        )

    return schedule


def make_optimizer(config: OptimConfig, steps: int, facts: Any) -> optax.GradientTransformation:
    """Optional clipping by the global norm, then AdamW, for all parameters without a rule of
    their own.

    Those of rule "sign" move by `sign_rate` against the sign of their gradient, those of "frozen"
    not at all, and neither counts in the norm. The state has the same structure for every config,
    so that another run can inherit it, and knows of rules only where a model has several.

    Args:
      facts: of every parameter, see `layers.parameters.facts_of`.
    """
    adamw = optax.adamw(
        make_schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=jax.tree.map(lambda its: its.decay, facts),
    )
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )
    rules = {
        "adamw": optax.chain(clip, adamw),
        "sign": optax.chain(optax.scale_by_sign(), optax.scale(-config.sign_rate)),
        "frozen": optax.set_to_zero(),
    }
    followed = jax.tree.map(lambda its: its.rule, facts)
    present = set(jax.tree.leaves(followed))
    if present == {"adamw"}:
        return rules["adamw"]
    return optax.multi_transform({name: rules[name] for name in sorted(present)}, followed)


def update_count(optimizer_state: Any) -> jax.Array:
    """Updates made so far: the schedule's position, inherited with the optimizer state."""
    return optax.tree_utils.tree_get(
        optimizer_state,
        "count",
        filtering=lambda path, _: "ScaleByScheduleState" in str(path[-1]),
    )
