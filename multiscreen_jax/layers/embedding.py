"""Token lookup that never passes a bad id silently, and checks of what a batch holds."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from multiscreen_jax.sharding import gather_features, shard_activations
from pallas_kernels.common.arguments import known


def check_tokens(tokens: Int[Array, "B T"], vocab_size: int) -> None:
    """Raise ValueError if `tokens` is not an integer [B, T] array of ids below `vocab_size`.

    Ids can be read only outside jit; inside, `lookup` turns a bad one into NaN.
    """
    if not hasattr(tokens, "dtype"):
        raise ValueError(f"tokens must be an array of integers [B,T], got a {_kind(tokens)}")
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers [B,T], got {tokens.dtype} {tokens.shape}")
    if tokens.size == 0:
        raise ValueError(f"tokens must hold at least one row and position, got {tokens.shape}")
    if isinstance(tokens, jax.core.Tracer):
        return
    ids = np.asarray(tokens)
    bad = (ids < 0) | (ids >= vocab_size)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"token ids must be in [0, {vocab_size}), got {ids[row, column]} at [{row}, {column}]"
        )


def check_segments(segment_ids: Any, shape: tuple[int, ...], at_end: bool = False) -> None:
    """Raise ValueError unless `segment_ids` is None or integers >= 0 of the tokens' shape.

    Every document must be one stretch of its row, see `layers.documents`; with `at_end` padding
    must come last. Values can be seen only outside jit.
    """
    if segment_ids is None:
        return
    if not hasattr(segment_ids, "dtype"):
        raise ValueError(
            f"segment_ids must be an array of integers {shape}, got a {_kind(segment_ids)}"
        )
    if segment_ids.shape != shape or not jnp.issubdtype(segment_ids.dtype, jnp.integer):
        raise ValueError(
            f"segment_ids must be integers of the shape of tokens, {shape}, "
            f"got {segment_ids.dtype} {segment_ids.shape}"
        )
    if isinstance(segment_ids, jax.core.Tracer):
        return
    ids = np.asarray(segment_ids)
    if ids.min(initial=0) < 0:
        raise ValueError(f"segment_ids must be >= 0 (0 is padding), got {ids.min()}")
    for number, row in enumerate(ids):
        starts = row[(np.diff(row, prepend=0) != 0) & (row != 0)]
        found, counts = np.unique(starts, return_counts=True)
        if counts.max(initial=1) > 1:
            raise ValueError(
                f"segment_ids must differ between documents, but {found[counts.argmax()]} comes "
                f"back in row {number} after another one or after padding"
            )
        if at_end and row[: np.count_nonzero(row)].size and not row[: np.count_nonzero(row)].all():
            raise ValueError(
                f"segment_ids of a row that continues a cache must have padding, 0, at its end "
                f"alone; row {number} has tokens after it"
            )


def check_targets(batch: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    """Raise ValueError if a batch has `targets` or a `loss_mask`, and they cannot be.

    Weights can be read only outside jit; inside, a wrong one becomes NaN.
    """
    if batch.get("targets") is not None:
        _check_array("targets", batch["targets"], shape, jnp.integer)
    if batch.get("loss_mask") is not None:
        _check_array("loss_mask", batch["loss_mask"], shape, jnp.integer, jnp.floating, jnp.bool_)
        _check_mask(batch["loss_mask"])


def refuse_unknown_targets(
    targets: Int[Array, "B T"], fine: Bool[Array, "B T"], vocab_size: int
) -> None:
    """Raise ValueError for the first target that is not fine, where that can be seen."""
    seen = known(fine)
    if seen is not None and not seen.all():
        row, column = np.argwhere(~seen)[0]
        raise ValueError(
            f"targets that count must be in [0, {vocab_size}), got {targets[row, column]} at "
            f"[{row}, {column}]"
        )


def _check_array(name: str, value: Any, shape: tuple[int, ...], *kinds: Any) -> None:
    """ValueError unless an array of this shape and of one of these kinds."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        raise ValueError(f"batch[{name!r}] must be an array {shape}, got {type(value).__name__}")
    if value.shape != shape or not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        allowed = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(
            f"batch[{name!r}] must be {allowed}, one shorter than the tokens, {shape}, got {dtype} "
            f"{value.shape}"
        )


def _check_mask(mask: Any) -> None:
    """ValueError for a weight that can be seen and is negative or not finite."""
    values = known(jnp.asarray(mask))  # a double may be more than what float32 holds
    if values is not None and not (fine := np.isfinite(values) & (values >= 0)).all():
        row, column = np.argwhere(~fine)[0]
        raise ValueError(
            f"batch['loss_mask'] must be finite and >= 0, got {values[row, column]} at "
            f"[{row}, {column}]"
        )


def _kind(value: Any) -> str:
    return type(value).__name__


def wide_ids(tokens: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """The same ids in at least 32 bits: in 8 or 16, sizes of vocabularies wrap around."""
    return jnp.asarray(tokens).astype(jnp.result_type(tokens, jnp.int32))


def lookup(rows: Float[Array, "O D"], tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """rows[tokens]; an id outside the table gives NaN."""
    ids = shard_activations(wide_ids(tokens))
    # Negative ids would count from the end: send them past the end instead.
    ids = jnp.where(ids < 0, rows.shape[0], ids)
    return jnp.take(gather_features(rows), ids, axis=0, mode="fill", fill_value=jnp.nan)
