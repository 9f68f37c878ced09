"""Laying documents out so that each starts where its own chunks start.

Levels count from the start of a document, so a chunk must not begin in the middle of one of a
document's own aligned blocks. Every document is moved to the next multiple of the chunk size; one
that continues a state of `start` tokens begins start % C slots into its chunk.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.common.documents import Documents


class Layout(NamedTuple):
    """Where tokens lie, and what each of N chunks is to its document.

    Attributes:
        source: the token in every slot, T where there is none; None if nothing moves.
        slot: the slot of every token, N C for those that have none.
        number: of a chunk, in its document.
        fresh: the chunk starts a document, not the row's first.
        closes: the row has chunks after this one.
        last: the row's last chunk.
        length: tokens of the row's last document after it, those before `start` included.
        too_many: the row holds more documents than there is room for.
    """

    source: Int[Array, "B NC"] | None
    slot: Int[Array, "B T"] | None
    number: Int[Array, "B N"]
    fresh: Bool[Array, "B N"]
    closes: Bool[Array, "B N"]
    last: Int[Array, " B"]
    length: Int[Array, " B"]
    too_many: Bool[Array, " B"]

    @property
    def chunks(self) -> int:
        return self.number.shape[1]

    def part(self, start: int, stop: int) -> "Layout":
        """That of some chunks alone; tokens' places stay those in the whole."""
        number, fresh, closes = (x[:, start:stop] for x in (self.number, self.fresh, self.closes))
        return self._replace(number=number, fresh=fresh, closes=closes)


def plain_layout(batch: int, length: int, size: int) -> Layout:
    """One document a row, from its start: nothing moves."""
    chunks = -(-length // size)
    number = jnp.broadcast_to(jnp.arange(chunks), (batch, chunks))
    return Layout(
        source=None,
        slot=None,
        number=number,
        fresh=jnp.zeros((batch, chunks), bool),
        closes=number < chunks - 1,
        last=jnp.full(batch, chunks - 1),
        length=jnp.full(batch, length, jnp.int32),
        too_many=jnp.zeros(batch, bool),
    )


def aligned_layout(
    documents: Documents | None,
    start: Int[Array, " B"],
    length: int,
    size: int,
    max_documents: int,
    continues: bool,
) -> Layout:
    """The layout of packed rows, or of rows that continue states of `start` tokens.

    It has room for `max_documents` a row, and for a first one that starts anywhere in a chunk if
    it `continues`.
    """
    batch = start.shape[0]
    if documents is None:
        documents = Documents(
            jnp.zeros((batch, length), jnp.int32), jnp.ones((batch, length), bool)
        )
    index, real = documents
    row = jnp.arange(batch)[:, None]
    chunks = (length + (max_documents + continues) * (size - 1)) // size

    member = (index[..., None] == jnp.arange(max_documents)) & real[..., None]
    count = jnp.sum(member, axis=1, dtype=jnp.int32)  # [B, documents]
    offset = jnp.zeros_like(count).at[:, 0].set(start % size)
    used = jnp.where(count > 0, -(-(offset + count) // size), 0)
    first = jnp.cumsum(used, axis=1) - used
    rank = jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
    within = rank - (jnp.cumsum(count, axis=1) - count)[row, index]
    slot = (first * size + offset)[row, index] + within
    slot = jnp.where(real & (index < max_documents), slot, chunks * size)
    source = jnp.full((batch, chunks * size), length)
    source = source.at[row, slot].set(jnp.arange(length), mode="drop")

    chunk = jnp.arange(chunks)
    begun = (first[:, None, :] <= chunk[:, None]) & (used > 0)[:, None, :]
    document = jnp.maximum(jnp.sum(begun, axis=-1) - 1, 0)  # [B, chunks]
    before = jnp.where(document == 0, (start // size)[:, None], 0)
    total = jnp.sum(used, axis=1)
    last = jnp.maximum(total - 1, 0)
    last_document = document[jnp.arange(batch), last]
    return Layout(
        source=source,
        slot=slot,
        number=chunk - first[row, document] + before,
        fresh=(chunk == first[row, document]) & (document > 0),
        closes=chunk < total[:, None] - 1,
        last=last,
        length=count[jnp.arange(batch), last_document] + jnp.where(last_document == 0, start, 0),
        too_many=jnp.any(real & (index >= max_documents), axis=1),
    )


def to_slots(x: Float[Array, "B T *X"], layout: Layout) -> Float[Array, "B NC *X"]:
    """Tokens in their slots; empty slots are zero."""
    if layout.source is None:
        return x
    x = jnp.pad(x, ((0, 0), (0, 1), *[(0, 0)] * (x.ndim - 2)))
    return x[np.arange(len(x))[:, None], layout.source]


def from_slots(x: Float[Array, "B NC *X"], layout: Layout, length: int) -> Float[Array, "B T *X"]:
    """The inverse of `to_slots`; tokens without a slot get zero."""
    if layout.slot is None:
        return x[:, :length]
    return x.at[np.arange(len(x))[:, None], layout.slot].get(mode="fill", fill_value=0)
