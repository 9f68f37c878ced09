"""Screening of sequences divided among the devices of a mesh axis.

Called inside `jax.shard_map(check_vma=False)` on a device's consecutive tokens, as many on every
device, in the order of the axis. What a query reads is a sum over keys, so a device needs no more
than the keys and values that its windows reach: of the device before it where all windows end
there, and else of all before.
"""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.common.shards import gather_past, past_neighbour
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

    Cost: the op's, for pairs whose query is here. While no window on any device of the mesh is
    longer than T + 1, a device gets B T H (K + V) numbers in the dtype of k and v; else n times as
    many, on n devices, which are in memory while the op runs. The backward pass fetches them again,
    and gives as many back: nothing but this device's own tokens is kept for it.
    """
    op = _with_past(axis_name, tuple(settings.items()))
    return op(q, k, v, window, width, segment_ids)


@lru_cache
def _with_past(axis_name: str, settings: tuple[tuple[str, Any], ...]) -> Any:
    """The op with a gradient of its own.

    Left to itself JAX would keep what either way of the forward pass needs, on both: all keys.
    """

    def run(
        past: Any, segment_ids: Any, q: Array, k: Array, v: Array, window: Array, width: Array
    ) -> Array:
        # Without keys (zero, never accepted) or documents there is nothing before the first.
        k, v = past(k, axis_name), past(v, axis_name)
        ids = None if segment_ids is None else past(segment_ids, axis_name)
        return api.screening(q, k, v, window, width, ids, **dict(settings))

    def either_way(function: Any, window: Array, length: int, *operands: Any) -> Any:
        # All devices have to take the same way, or some would wait for others for ever.
        axes = jax.sharding.get_abstract_mesh().manual_axes
        longest = lax.pmax(jnp.max(window), axes)
        ways = (partial(function, past) for past in (past_neighbour, gather_past))
        return lax.cond(longest <= length + 1, *ways, *operands)

    @jax.custom_vjp
    def screen(q, k, v, window, width, segment_ids):
        return either_way(run, window, q.shape[1], segment_ids, q, k, v, window, width)

    def forward(*inputs):
        return screen(*inputs), inputs

    def backward(inputs, dh):
        def pull(past, segment_ids, dh, *floats):
            return jax.vjp(partial(run, past, segment_ids), *floats)[1](dh)

        *floats, segment_ids = inputs
        gradients = either_way(pull, floats[3], dh.shape[1], segment_ids, dh, *floats)
        return (*gradients, None)

    screen.defvjp(forward, backward)
    return screen
