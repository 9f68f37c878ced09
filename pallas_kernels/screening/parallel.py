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
    window: Float[Array, "H"],
    width: Float[Array, "H"],
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
    those of the step before. The backward pass takes the same steps; sums of gradients travel along
    in float32, and go home in the inputs' dtype. In memory are the keys and values of three
    devices, however many there are; nothing but this device's own tokens is kept for the backward
    pass. The last devices of the axis have the most work: all keys are before theirs.
    """
    return _ring(axis_name, tuple(settings.items()))(q, k, v, window, width, segment_ids)


def _joined(before: Any, x: Any) -> Any:
    return None if x is None else jnp.concatenate([before, x], axis=1)


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

        def add(steps, past, total):
            past_k, past_v, past_ids = past
            ids = _joined(past_ids, segment_ids)
            return total[0] + of_farther(ids, steps, q, past_k, past_v, window, width), ()

        _, (h, _) = _walk(axis_name, window, add, past, (h, ()))
        return h

    def forward(*inputs):
        return screen(*inputs), inputs

    def backward(inputs, dh):
        q, k, v, window, width, segment_ids = inputs
        past = past_k, past_v, past_ids = from_before((k, v, segment_ids), axis_name)
        of_these = partial(of_nearest, _joined(past_ids, segment_ids))
        _, pull = jax.vjp(of_these, q, k, v, past_k, past_v, window, width)
        dq, dk, dv, dpast_k, dpast_v, dwindow, dwidth = pull(dh)

        def add(steps, past, total):
            past_k, past_v, past_ids = past
            of_these = partial(of_farther, _joined(past_ids, segment_ids), steps)
            _, pull = jax.vjp(of_these, q, past_k, past_v, window, width)
            dq, dpast_k, dpast_v, dwindow, dwidth = pull(dh)
            return jax.tree.map(jnp.add, total, ((dq, dwindow, dwidth), (dpast_k, dpast_v)))

        total = (dq, dwindow, dwidth), (dpast_k, dpast_v)
        steps, total = _walk(axis_name, window, add, past, total)
        (dq, dwindow, dwidth), travelled = total
        of_others = _home(axis_name, steps, travelled)
        dk, dv = jax.tree.map(jnp.add, (dk, dv), of_others)
        return dq, dk, dv, dwindow, dwidth, None

    screen.defvjp(forward, backward)
    return screen


def _walk(axis_name: str, window: Array, add: Any, past: Any, total: Any) -> tuple[Array, Any]:
    """total = add(steps, past, total) for the tokens of each device two steps or more before this
    one, as far as a window on any device reaches; with the steps taken.

    Args:
        past: the tokens of the device before.
        total: what stays here, and what belongs to the tokens that travel and goes with them. Sums
            are in `accumulation_dtype`.
    """
    # All devices have to take the same steps, or some would wait for others for ever.
    axes = jax.sharding.get_abstract_mesh().manual_axes
    longest, length = lax.pmax(jnp.max(window), axes), past[0].shape[1]

    def reaches(steps):
        return (steps < lax.axis_size(axis_name)) & ((steps - 1) * length + 1 < longest)

    def visit(state):
        steps, past, (here, travelling) = state
        following = from_before(past, axis_name)  # on its way while this is worked on
        total = here, around(travelling, axis_name, 1)
        is_there = lax.axis_index(axis_name) >= steps
        total = lax.cond(is_there, add, lambda steps, past, total: total, steps, past, total)
        return steps + 1, following, total

    def farther(past, total):
        sums = jax.tree.map(lambda x: x.astype(accumulation_dtype(x)), total)
        state = jnp.int32(2), from_before(past, axis_name), sums
        steps, _, sums = lax.while_loop(lambda state: reaches(state[0]), visit, state)
        return steps - 1, jax.tree.map(lambda sum, x: sum.astype(x.dtype), sums, total)

    return lax.cond(reaches(2), farther, lambda past, total: (jnp.int32(1), total), past, total)


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
