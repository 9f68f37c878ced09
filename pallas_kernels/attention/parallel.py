"""Causal attention of sequences divided among the devices of a mesh axis.

Every device gathers the keys and values of those before it (the all-gather form of Llama 3's
context parallelism, arXiv:2407.21783, section 3.3.2).
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.attention import api
from pallas_kernels.common.shards import gather_past


def causal_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    segment_ids: Int[Array, "B T"] | None = None,
    *,
    axis_name: str,
    **settings: Any,
) -> Float[Array, "B T H K"]:
    """`causal_attention` of a divided sequence.

    Args:
        q, k, v, segment_ids: this device's T tokens, as many on every device; a document has one
            id on all of them.
        axis_name: of the mesh, inside `jax.shard_map(check_vma=False)`.
        settings: scale, implementation and precision.

    Cost: up to n times the op's, for n T keys on n devices. Every device gets 2 n B T G K numbers,
    which are in memory while the op runs, and gives as many back in the backward pass.
    """
    if segment_ids is None:  # zero keys of tokens to come are to be left out, as padding
        segment_ids = jnp.ones(q.shape[:2], jnp.int32)
    k, v, ids = (gather_past(x, axis_name) for x in (k, v, segment_ids))
    return api.causal_attention(q, k, v, ids, **settings)
