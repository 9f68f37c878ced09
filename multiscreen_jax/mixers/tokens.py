"""Mixers that look back at what they keep of every token: keys and values, latents, indices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from multiscreen_jax.cache import Chunk, Cursor
from multiscreen_jax.mixers.mixer import Mixer

Entries = dict[str, Float[Array, "N B G S K"]]


class TokenMixer(Mixer):
    """A mixer that keeps vectors of every token; it defines `entries`.

    Its part of the cache is {name: [N, B, G, S, K]}: row b holds tokens 0 <= s < cursor.length[b],
    and S is the cursor's limit. A layer gets its number in `layer`, reads `context.cache` in place,
    and returns what its new tokens add, {name: [B, T, G, K]}, as `Mixed.written`.
    """

    def entries(self) -> dict[str, tuple[int, int]]:
        """(G, K) of every entry: of each token are kept G vectors of K numbers."""
        raise NotImplementedError(f"{type(self).__name__} does not define entries")

    def init_cache(
        self, params: Any, layers: int, batch: int, max_length: int, dtype: jnp.dtype
    ) -> tuple[Entries, int]:
        """N B max_length zeros for every number that is kept of a token."""
        del params
        made = {
            name: jnp.zeros((layers, batch, groups, max_length, width), dtype)
            for name, (groups, width) in self.entries().items()
        }
        return made, max_length

    def split_cache(self, part: Entries) -> tuple[Int[Array, " N"], Entries]:
        """Layers read the one cache in place, by number, and hand back what is to be written."""
        return jnp.arange(next(iter(part.values())).shape[0]), part

    def write_cache(self, part: Entries, chunk: Chunk, cursor: Cursor, written: Entries) -> Entries:
        """All layers in one write; `written` has [N, B, T, G, K]."""
        return jax.tree.map(functools.partial(_write, chunk, cursor), part, written)


def _write(chunk: Chunk, cursor: Cursor, old: Array, new: Array) -> Array:
    # Padding, and what does not fit, goes past the end, where the write is dropped.
    place = jnp.where(chunk.segment_ids != 0, chunk.index, cursor.max_length)
    row = jnp.arange(place.shape[0])[:, None]
    # Indexed axes come first: [B, T, N, G, K].
    new = jnp.moveaxis(new.astype(old.dtype), 0, 2)
    return old.at[:, row, :, place].set(new, mode="drop")
