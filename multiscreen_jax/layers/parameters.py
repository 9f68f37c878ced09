"""Parameters, and beside each of them the facts that others need.

    weight(self, "query", init, (D, H, K), ("embed", "heads", "key"), dtype)

makes a parameter as `nn.Module.param` does. Its facts (logical axes, weight decay, the optimizer's
rule) are no part of the variables: `facts_of` collects them by tracing the model's `init`, which
computes nothing. Sharding, decay and the optimizer's groups follow from them.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from multiscreen_jax.sharding import LogicalAxes, path_name

RULES = ("adamw", "sign", "frozen")


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts of a parameter, said where it is made.

    Attributes:
        axes: of each of its axes, a field of `sharding.LogicalAxes`, or None: it is kept whole.
        decay: whether weight decay applies.
        rule: how the optimizer changes it: by AdamW, by the sign of its gradient, or not at all.
    """

    axes: tuple[str | None, ...]
    decay: bool = True
    rule: str = "adamw"


_facts: contextvars.ContextVar[dict[str, Facts] | None]
_facts = contextvars.ContextVar("facts of the parameters that are being made", default=None)
_stacked: contextvars.ContextVar[tuple[str, ...]]
_stacked = contextvars.ContextVar("axes that are put before those of every parameter", default=())


def weight(
    module: nn.Module,
    name: str,
    init: Any,
    shape: Sequence[int],
    axes: Sequence[str | None],
    dtype: Any,
    *,
    decay: bool = True,
    rule: str = "adamw",
) -> Array:
    """The parameter `name` of a module, made by `init(key, shape, dtype)`.

    Args:
        axes: of each axis, its name in `sharding.LogicalAxes`, or None: it is never divided.
        decay: whether weight decay applies. It should to matrices that multiply activations, and
            not to scales, gains, biases and rates.
        rule: one of `RULES`, by which the optimizer changes it.

    Raises:
        ValueError: a fact that there is not, or not as many axes as the shape has.
    """
    facts = Facts(tuple(axes), decay, rule)
    _check(name, facts, tuple(shape))
    made = _facts.get()
    if made is not None:
        path = "/".join((*module.scope.path, name))
        made[path] = dataclasses.replace(facts, axes=(*_stacked.get(), *facts.axes))
    return module.param(name, init, tuple(shape), jnp.dtype(dtype))


def _check(name: str, facts: Facts, shape: tuple[int, ...]) -> None:
    if len(facts.axes) != len(shape):
        raise ValueError(
            f"parameter {name} has shape {shape} and axes {facts.axes}; allowed: one name, or "
            "None, for each axis"
        )
    known = [field.name for field in dataclasses.fields(LogicalAxes)]
    for axis in facts.axes:
        if axis is not None and axis not in known:
            raise ValueError(
                f"parameter {name} has an axis {axis!r}; allowed: None, {', '.join(known)}"
            )
    if facts.rule not in RULES:
        raise ValueError(
            f"parameter {name} has the rule {facts.rule!r}; allowed: {', '.join(RULES)}"
        )


@contextlib.contextmanager
def stacked(axis: str) -> Iterator[None]:
    """Parameters made in here get one axis more, the first, as those of a scan over layers do."""
    before = _stacked.set((axis, *_stacked.get()))
    try:
        yield
    finally:
        _stacked.reset(before)


@functools.lru_cache(maxsize=256)
def facts_of(model: nn.Module) -> Any:
    """The `Facts` of every parameter of a language model, in a tree like the parameters'.

    Raises:
        ValueError: a parameter was made by `self.param`, without facts.
    """
    token = _facts.set({})
    try:
        # A function of its own: JAX keeps the traces of those it has seen, and traces once.
        tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
        params = jax.eval_shape(lambda *x: model.init(*x), jax.random.key(0), tokens)["params"]
        made = _facts.get()
    finally:
        _facts.reset(token)

    def of(path: tuple[Any, ...], leaf: Any) -> Facts:
        name = path_name(path)
        if name not in made:
            raise ValueError(
                f"parameter {name} {tuple(leaf.shape)} has no facts; make it with "
                "self.weight(name, init, shape, axes, decay=...) in place of self.param"
            )
        return made[name]

    return jax.tree_util.tree_map_with_path(of, params)
