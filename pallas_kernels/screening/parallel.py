"""Screening of sequences divided among the devices of a mesh axis.

Called inside `jax.shard_map(check_vma=False)` on a device's consecutive tokens, as many on every
device, in the order of the axis. What a query reads is a plain sum over keys, so the tokens of each
device give a part of it. Keys and values travel from device to device, one step at a time, as far
as the longest window reaches: while it ends among the tokens of the device before, one step.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.common.numerics import accumulation_dtype
from pallas_kernels.common.shards import around, from_before
from pallas_kernels.screening import api


def screening(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    window: Float[Array, " H"],
    width: Float[Array, " H"],
    segment_ids: Int[Array, "B T"] | None = None,
    *,
    axis_name: str,
    **settings: Any,
) -> Float[Array, "B T H V"]:
    """`screening` of a divided sequence (arXiv:2604.01178 v3, eq. 9-12).

    Args:
        q, k, v, segment_ids: this device's T tokens; a document has one id on all devices.
        window, width: the same on all devices of the axis.
        axis_name: of the mesh, inside `jax.shard_map(check_vma=False)`.
        settings: implementation and precision.

    Cost: the op's, for pairs whose query is here. With n devices and a longest window w on any of
    the mesh, ceil((w - 1) / T) steps, at least one and at most n - 1, and one more if there are
    several; in each a device gets B T H (K + V) numbers in the dtype of k and v, while it works on
    those of the step before. The backward pass takes the same steps; after one, gradients go home
    in the inputs' dtype, else their sums travel along in float32, and home. In memory are the keys
    and values of three devices, however many there are; nothing but this device's own tokens is
    kept for the backward pass. The last devices of the axis have the most work: all keys are before
    theirs.
    """
    # As a key of a cache.
    settings = {name: tuple(x) if isinstance(x, list) else x for name, x in settings.items()}
    return _ring(axis_name, tuple(settings.items()))(q, k, v, window, width, segment_ids)


@lru_cache
def _ring(axis_name: str, settings: tuple[tuple[str, Any], ...]) -> Callable[..., Array]:
    """The op with a gradient of its own: left to itself JAX would keep all that has travelled."""
    op = partial(api.screening, **dict(settings))

    def of_nearest(segment_ids, q, k, v, past_k, past_v, window, width):
        # On the first device zeros are before its own: without values or document, not read.
        return op(q, _joined(past_k, k), _joined(past_v, v), window, width, segment_ids)

    def of_farther(segment_ids, steps, q, past_k, past_v, window, width):
        gap = (steps - 1) * q.shape[1]
        return op(q, past_k, past_v, window, width, segment_ids, gap=gap)

    @jax.custom_vjp
    def screen(q, k, v, window, width, segment_ids):
        past = past_k, past_v, past_ids = from_before((k, v, segment_ids), axis_name)
        ids = _joined(past_ids, segment_ids)
        h = of_nearest(ids, q, k, v, past_k, past_v, window, width)

        def add(steps, past, h, _):
            past_k, past_v, past_ids = past
            ids = _joined(past_ids, segment_ids)
            return h + of_farther(ids, steps, q, past_k, past_v, window, width), ()

        return _walk(axis_name, window, add, past, h, (), ())[0]

    def forward(*inputs):
        return screen(*inputs), inputs

    def backward(inputs, dh):
        q, k, v, window, width, segment_ids = inputs
        past = past_k, past_v, past_ids = from_before((k, v, segment_ids), axis_name)
        of_these = partial(of_nearest, _joined(past_ids, segment_ids))
        _, pull = jax.vjp(of_these, q, k, v, past_k, past_v, window, width)
        dq, dk, dv, dpast_k, dpast_v, dwindow, dwidth = pull(dh)

        def add(steps, past, here, travelling):
            past_k, past_v, past_ids = past
            of_these = partial(of_farther, _joined(past_ids, segment_ids), steps)
            _, pull = jax.vjp(of_these, q, past_k, past_v, window, width)
            dq, dpast_k, dpast_v, dwindow, dwidth = pull(dh)
            return _sums((here, travelling), ((dq, dwindow, dwidth), (dpast_k, dpast_v)))

        here, travelling = (dq, dwindow, dwidth), (dpast_k, dpast_v)
        here, own = _walk(axis_name, window, add, past, here, travelling, (dk, dv))
        return here[0], *own, *here[1:], None

    screen.defvjp(forward, backward)
    return screen


def _walk(
    axis_name: str, window: Array, add: Any, past: Any, here: Any, travelling: Any, own: Any
) -> tuple[Any, Any]:
    """here, travelling = add(steps, past, here, travelling) for the tokens of each device two steps
    or more before this one, as far as a window on any device reaches.

    Args:
        past: the tokens of the device before.
        here: what stays.
        travelling: what belongs to the tokens in `past`, and goes with them.
        own: what belongs to this device's tokens.

    Returns:
        here, and own with what has travelled of it added. Sums are in `accumulation_dtype`, and
        rounded once, to the dtypes of `here` and `own`.
    """
    # All devices have to take the same steps, or some would wait for others for ever.
    axes = jax.sharding.get_abstract_mesh().manual_axes
    # A window that is NaN makes its own head NaN, and must not keep the others from walking.
    farthest = jnp.max(window, initial=0, where=~jnp.isnan(window))
    longest, length = lax.pmax(farthest, axes), past[0].shape[1]

    def reaches(steps):
        return (steps < lax.axis_size(axis_name)) & ((steps - 1) * length + 1 < longest)

    def visit(state):
        steps, past, here, travelling = state
        following = from_before(past, axis_name)  # on its way while this is worked on
        state = steps, past, here, around(travelling, axis_name, 1)
        is_there = lax.axis_index(axis_name) >= steps
        here, travelling = lax.cond(is_there, add, lambda *state: state[2:], *state)
        return steps + 1, following, here, travelling

    def farther(past, here, travelling, own):
        state = jnp.int32(2), from_before(past, axis_name), _wide(here), _wide(travelling)
        steps, _, sums, travelled = lax.while_loop(lambda state: reaches(state[0]), visit, state)
        travelled = _home(axis_name, steps - 1, travelled)
        return _like(here, sums), _like(own, _sums(_wide(own), travelled))

    def nearest(past, here, travelling, own):
        travelled = around(travelling, axis_name, -1)
        return here, _like(own, _sums(_wide(own), travelled))

    return lax.cond(reaches(2), farther, nearest, past, here, travelling, own)


def _home(axis_name: str, steps: Array, x: Any) -> Any:
    """What has travelled so many steps, where it came from, by the shorter way around."""
    size = lax.axis_size(axis_name)

    def turn(direction, count, x):
        def more(state):
            # The constant is for those who read how long a program may take.
            return (state[0] < size // 2) & (state[0] < count)

        def visit(state):
            return state[0] + 1, around(state[1], axis_name, direction)

        return lax.while_loop(more, visit, (jnp.int32(0), x))[1]

    return lax.cond(2 * steps > size, partial(turn, 1, size - steps), partial(turn, -1, steps), x)


def _joined(before: Any, x: Any) -> Any:
    return None if x is None else jnp.concatenate([before, x], axis=1)


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(accumulation_dtype(x)), tree)


def _sums(tree: Any, other: Any) -> Any:
    return jax.tree.map(jnp.add, tree, other)


def _like(tree: Any, sums: Any) -> Any:
    return jax.tree.map(lambda x, total: total.astype(x.dtype), tree, sums)
