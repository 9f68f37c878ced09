"""How far each row of a cache has been written, and how a new chunk of tokens continues it.

A model's cache is a `ModelCache`: one `Cursor`, and what its mixers keep (keys and values, rings,
states), which is their own. Rows are independent, so prompts of different lengths share a batch:
shorter rows end in padding tokens (segment id 0), which are not written and not counted.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

_OF_MODEL = "a cache belongs to the model whose init_cache made it"


@struct.dataclass
class Cursor:
    """Per-row position of a cache.

    Attributes:
        length: [B] int32, tokens written.
        segment: [B] int32, id of the document that the last token belongs to.
        start: [B] int32, index of that document's first token.
        max_length: most tokens a row may hold. A row with length > max_length has lost tokens:
            models return NaN for it from that call on.
    """

    length: Int[Array, " B"]
    segment: Int[Array, " B"]
    start: Int[Array, " B"]
    max_length: int = struct.field(pytree_node=False)


@struct.dataclass
class ModelCache:
    """A model's memory of what it has read.

    Attributes:
        parts: by stage, what each mixer of the stage's pattern keeps, stacked over its repeats.
        cursor: progress of each row.
    """

    parts: dict[str, tuple[Any, ...]]
    cursor: Cursor


@struct.dataclass
class Chunk:
    """T new tokens per row, placed after what the cache holds.

    Attributes:
        index: [B, T] int32, place of each token in the row (padding: where it would be).
        position: [B, T] int32, the same counted from the start of the token's own document.
        segment_ids: [B, T] int32, documents of the chunk, numbered from 1; 0 for padding.
        continues: [B, T] bool, the token belongs to the document that the cache ends with, so it
            may read cache entries from `Cursor.start` on; other tokens read only this chunk.
        overflow: [B] bool, the row runs past max_length in this chunk or did so before, or has
            tokens after padding, which have no place.
    """

    index: Int[Array, "B T"]
    position: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    continues: Bool[Array, "B T"]
    overflow: Bool[Array, " B"]


def check_size(batch: int, max_length: int) -> None:
    """ValueError unless both are integers >= 1."""
    for name, value in (("batch", batch), ("max_length", max_length)):
        is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not is_integer or value < 1:
            raise ValueError(f"{name} of a cache must be an integer >= 1, got {value!r}")


def new_cursor(batch: int, max_length: int) -> Cursor:
    """A cursor at the beginning; see `check_size`."""
    check_size(batch, max_length)
    # Three buffers, not one shared: a cache may be donated.
    return Cursor(
        length=jnp.zeros(batch, jnp.int32),
        segment=jnp.ones(batch, jnp.int32),
        start=jnp.zeros(batch, jnp.int32),
        max_length=max_length,
    )


def check_cache(cache: Any, patterns: dict[str, int], batch: int) -> None:
    """ValueError unless `cache` is a `ModelCache` of `batch` rows with these parts.

    Args:
        patterns: by stage, how many mixers its pattern has.
    """
    cursor = getattr(cache, "cursor", None)
    if not isinstance(cache, ModelCache) or not isinstance(cursor, Cursor):
        raise ValueError(f"cache must be what init_cache makes, got {type(cache).__name__}")
    if getattr(cursor.length, "ndim", None) != 1:
        given = getattr(cursor.length, "shape", cursor.length)
        raise ValueError(f"cursor.length of the cache must be [B], got {given}: {_OF_MODEL}")
    given = {name: len(parts) for name, parts in cache.parts.items()}
    if given != patterns:
        raise ValueError(
            f"parts of the cache must be {_listed(patterns)}, got {_listed(given)}: {_OF_MODEL}"
        )
    rows = cursor.length.shape[0]
    if rows != batch:
        raise ValueError(f"tokens must have the cache's {rows} rows, got {batch}")


def _listed(patterns: dict[str, int]) -> str:
    return ", ".join(f"{count} of {name}" for name, count in patterns.items())


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{"layers.mixer.query": shape} of every array of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    return {name(path): jnp.shape(x) for path, x in leaves}


def check_like(cache: Any, needed: Any) -> None:
    """ValueError unless `cache` has the structure and the shapes of `needed`."""
    if type(cache) is not type(needed):
        kinds = f"of type {type(needed).__name__}, got {type(cache).__name__}"
        raise ValueError(f"cache must be {kinds}: {_OF_MODEL}")
    wanted, given = shapes(needed), shapes(cache)
    for name in dict.fromkeys((*wanted, *given)):
        if wanted.get(name) != given.get(name):
            must = f"must be {wanted[name]}" if name in wanted else "must be left out"
            got = given.get(name, "none")
            raise ValueError(f"{name} of the cache {must}, got {got}: {_OF_MODEL}")


def place(
    cursor: Cursor, segment_ids: Int[Array, "B T"] | None, length: int
) -> tuple[Chunk, Cursor]:
    """Place `length` new tokens per row; returns (chunk, the cursor after it).

    Without `segment_ids` all tokens are real and continue the row's last document. With them, 0
    marks padding, which may stand only at the end of a row, and documents must be contiguous.
    """
    batch = cursor.length.shape[0]
    if segment_ids is None:
        segment_ids = jnp.broadcast_to(cursor.segment[:, None], (batch, length))
    index = cursor.length[:, None] + jnp.arange(length, dtype=jnp.int32)
    real = segment_ids != 0
    after_padding = jnp.any(real[:, 1:] & ~real[:, :-1], axis=1)
    previous = jnp.concatenate([cursor.segment[:, None], segment_ids[:, :-1]], axis=1)
    begins = segment_ids != previous
    start = jax.lax.cummax(jnp.where(begins, index, cursor.start[:, None]), axis=1)
    number = jnp.cumsum(real & begins, axis=1, dtype=jnp.int32)  # 0: of the cache's last document
    count = jnp.sum(real, axis=1, dtype=jnp.int32)
    last = jnp.maximum(count - 1, 0)[:, None]
    end = Cursor(
        length=cursor.length + count,
        segment=jnp.where(
            count > 0, jnp.take_along_axis(segment_ids, last, axis=1)[:, 0], cursor.segment
        ),
        start=jnp.where(count > 0, jnp.take_along_axis(start, last, axis=1)[:, 0], cursor.start),
        max_length=cursor.max_length,
    )
    chunk = Chunk(
        index=index,
        position=index - start,
        segment_ids=jnp.where(real, number + ~begins[:, :1], 0),
        continues=real & (number == 0),
        overflow=(end.length > cursor.max_length) | after_padding,
    )
    return chunk, end


def last_real(segment_ids: Int[Array, "B T"] | None, batch: int, length: int) -> Int[Array, " B"]:
    """Index in the chunk of each row's last real token (0 for a row of padding only)."""
    if segment_ids is None:
        return jnp.full(batch, length - 1, jnp.int32)
    return jnp.maximum(jnp.sum(segment_ids != 0, axis=1, dtype=jnp.int32) - 1, 0)
