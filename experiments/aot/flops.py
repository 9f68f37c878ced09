"""FLOPs of a traced step, loops multiplied out: products only, a multiply-add counts two.

Counted from the jaxpr, that is before the compiler: what is there runs, on all devices together.
Loops whose length is only known when they run, and Pallas kernels that hold such loops, cannot be
counted; they are listed, and kernels may be given a formula.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.interpreters import partial_eval

from multiscreen_jax.models.multiscreen import MultiscreenConfig

Formula = Callable[[str, Sequence[Any]], float | None]


@dataclass
class Flops:
    """What was counted, over all devices."""

    products: float = 0  # matrix products and convolutions
    kernels: Counter[str] = field(default_factory=Counter)  # Pallas kernels, by name
    uncounted: Counter[str] = field(
        default_factory=Counter
    )  # loops and kernels: how often they run

    @property
    def total(self) -> float:
        return self.products + sum(self.kernels.values())


def count(jaxpr: Any, formula: Formula = lambda name, shapes: None) -> Flops:
    """FLOPs of a jaxpr (closed or not), without what its results do not need.

    Args:
      formula: (name of a Pallas kernel, its inputs' avals) -> FLOPs of one call, or None to count
        its body times its grid.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    found = Flops()
    # The compiler drops the rest too: what a gradient makes of an op's own result, for one.
    _walk(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0], 1, found, formula)
    return found


def _walk(jaxpr: Any, times: float, found: Flops, formula: Formula) -> None:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            found.products += times * _product(equation)
        elif name == "conv_general_dilated":
            found.products += times * _convolution(equation)
        elif name == "pallas_call":
            _kernel(equation, times, found, formula)
        elif name == "while":
            inner = count(equation.params["body_jaxpr"], formula)
            if inner.total or inner.uncounted:
                found.uncounted["loop of run-time length"] += times  # pyright: ignore
        elif name == "cond":
            # The branches are alternatives: the largest stands for all.
            branches = [count(branch, formula) for branch in equation.params["branches"]]
            _add(found, max(branches, key=lambda b: (b.total, len(b.uncounted))), times)
        else:
            for inner, repeats in _inner(equation):
                _walk(inner, times * repeats, found, formula)


def _inner(equation: Any) -> list[tuple[Any, int]]:
    """Jaxprs inside an equation and how often each runs, whatever calls them."""
    repeats = 1
    if equation.primitive.name == "scan":
        repeats = equation.params["length"]
    elif equation.primitive.name == "shard_map":
        mesh = equation.params["mesh"]
        repeats = math.prod(mesh.shape[axis] for axis in equation.params["newly_manual_axes"])
    values = [x for x in equation.params.values() if hasattr(x, "eqns") or hasattr(x, "jaxpr")]
    return [(getattr(value, "jaxpr", value), repeats) for value in values]


def _add(found: Flops, other: Flops, times: float) -> None:
    found.products += times * other.products
    for name, value in other.kernels.items():
        found.kernels[name] += times * value  # pyright: ignore
    for name, value in other.uncounted.items():
        found.uncounted[name] += times * value  # pyright: ignore


def _product(equation: Any) -> float:
    left, right = (variable.aval.shape for variable in equation.invars)
    (contracted, _), (batched, _) = equation.params["dimension_numbers"]
    sizes = math.prod(left[axis] for axis in (*contracted, *batched))
    return 2 * math.prod(left) * math.prod(right) / sizes


def _convolution(equation: Any) -> float:
    kernel = equation.invars[1].aval.shape
    features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / features


def _kernel(equation: Any, times: float, found: Flops, formula: Formula) -> None:
    name = equation.params["name"]
    flops = formula(name, [variable.aval for variable in equation.invars])
    if flops is not None:
        found.kernels[name] += times * flops  # pyright: ignore
        return
    grid = equation.params["grid_mapping"].grid
    body = count(equation.params["jaxpr"], formula)
    if body.uncounted or not all(isinstance(size, int) for size in grid):
        found.uncounted[name] += times  # pyright: ignore
    found.kernels[name] += times * math.prod(grid) * body.total  # pyright: ignore


def screening_formula(config: Any, length: int, on_last: bool = False) -> Formula:
    """FLOPs of one call of a screening kernel of a Multiscreen model, for its initial windows.

    Its loops follow the windows. Forward: similarity and values, 2 (K + V) a pair. Of the backward
    kernels both recompute the similarity and the value gradient's product, and add their own: K
    for queries, K + V for keys and values.

    Args:
      length: of whole sequences, of which a device may hold a share. A call's queries have the
        pairs of a mean one of the sequence, and a call for keys of devices farther away than the
        next has none, as they are among these.
      on_last: the pairs of the sequence's last queries, instead of the mean: all devices wait for
        the last one.
    """
    multiply_adds = {
        "screening_forward": (1, 1),
        "screening_backward_queries": (2, 1),
        "screening_backward_keys": (2, 2),
    }

    def formula(name: str, shapes: Sequence[Any]) -> float | None:
        kernel = name.removesuffix("_apart")
        if kernel not in multiply_adds or not isinstance(config, MultiscreenConfig):
            return None
        if kernel != name:
            return 0.0
        # Queries, keys, values and cotangents in any order.
        sides = [x.shape for x in shapes if len(x.shape) == 4]
        # [B, T, H, K] on a GPU, [B, H, K, T] on a TPU.
        features = {config.key_dim, config.value_dim}
        is_gpu = all(shape[3] in features for shape in sides)
        queries = min(shape[1 if is_gpu else 3] for shape in sides)
        if on_last:
            pairs = _pairs(config, length) - _pairs(config, max(length - queries, 0))
        else:
            pairs = _pairs(config, length) * queries / length
        heads = sides[0][0] * sides[0][2 if is_gpu else 1]  # of all rows
        pairs *= heads / config.num_heads
        keys, values = multiply_adds[kernel]
        return 2 * pairs * (keys * config.key_dim + values * config.value_dim)

    return formula


def _pairs(config: MultiscreenConfig, length: int) -> float:
    """Pairs of one layer and sequence inside the initial windows."""
    tiles = config.tiles().build(config.common)
    pairs = tiles.forward_flops(length) - tiles.forward_flops(length, np.zeros(config.num_heads))
    return pairs / (2 * (config.key_dim + config.value_dim))
