"""Screening of sequences divided among the devices of a mesh axis.

Called inside `jax.shard_map(check_vma=False)` on a device's consecutive tokens, as many on every
device, in the order of the axis. What a query reads is a sum over keys, so a device needs no more
than the keys and values that its windows reach: of the device before it where all windows end
there, and else of all before.
"""

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
    longer than T + 1, a device gets B T H (K + V) numbers in the dtype of k and v, and gives as
    many back in the backward pass; else n times as many, on n devices, which are in memory while
    the op runs.
    """

    def with_past(past: Any) -> Any:
        def run(q, k, v, segment_ids, window, width):
            # Without keys (zero, never accepted) or documents there is nothing before the first.
            k, v = past(k, axis_name), past(v, axis_name)
            ids = None if segment_ids is None else past(segment_ids, axis_name)
            return api.screening(q, k, v, window, width, ids, **settings)

        return run

    # All devices have to take the same way, or some would wait for others for ever.
    axes = jax.sharding.get_abstract_mesh().manual_axes
    longest = lax.pmax(lax.stop_gradient(jnp.max(window)), axes)
    return lax.cond(
        longest <= q.shape[1] + 1,
        with_past(past_neighbour), with_past(gather_past),
        q, k, v, segment_ids, window, width,
    )  # fmt: skip
