"""Token lookup that never passes a bad id silently."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def check_tokens(tokens: Int[Array, "B T"], vocab_size: int) -> None:
    """Raise ValueError if `tokens` is not an integer [B, T] array of ids below `vocab_size`.

    Ids can be read only outside jit; inside, `lookup` turns a bad one into NaN.
    """
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers [B,T], got {tokens.dtype} {tokens.shape}")
    if tokens.shape[1] == 0:
        raise ValueError(f"tokens must hold at least one position, got shape {tokens.shape}")
    if isinstance(tokens, jax.core.Tracer):
        return
    ids = np.asarray(tokens)
    bad = (ids < 0) | (ids >= vocab_size)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"token ids must be in [0, {vocab_size}), got {ids[row, column]} at [{row}, {column}]"
        )


def wide_ids(tokens: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """The same ids in at least 32 bits: in 8 or 16, sizes of vocabularies wrap around."""
    return jnp.asarray(tokens).astype(jnp.result_type(tokens, jnp.int32))


def lookup(rows: Float[Array, "O D"], tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """rows[tokens]; an id outside the table gives NaN."""
    ids = wide_ids(tokens)
    # Negative ids would count from the end: send them past the end instead.
    ids = jnp.where(ids < 0, rows.shape[0], ids)
    return jnp.take(rows, ids, axis=0, mode="fill", fill_value=jnp.nan)
