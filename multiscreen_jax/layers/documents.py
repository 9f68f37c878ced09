"""Documents of a row: stretches of tokens with one id that is not 0.

Ids come from outside and only tell stretches apart. Once per forward pass they become numbers from
1 in each row, which positions, convolutions, ops and caches all use; 0 is padding. An id may not
come back after other tokens or padding: it would be one document by its id and two by its
positions. Where that can be seen it is refused; inside jit it is a document of its own.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int


def documents(segment_ids: Int[Array, "B T"] | None) -> Int[Array, "B T"] | None:
    """Numbers of the documents, from 1 in each row, and 0 for padding; None: one in each row."""
    if segment_ids is None:
        return None
    previous = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)))
    real = segment_ids != 0
    number = jnp.cumsum(real & (segment_ids != previous), axis=1, dtype=jnp.int32)
    return jnp.where(real, number, 0)
