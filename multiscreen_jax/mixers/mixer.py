"""Token mixers as the trunk sees them: a module, its part of the cache, and its counts."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from multiscreen_jax.cache import Chunk, Cursor, check_like
from multiscreen_jax.layers.branch import Branch


@struct.dataclass
class Context:
    """What all layers of one kind share in a forward pass.

    Attributes:
        segment_ids: [B, T] documents of packed rows, 0 for padding; None where all tokens of a row
            are one document, the one its cache ends with.
        positions: [B, T] (or [1, T]) of every token in its document.
        prepared: what the mixer's `prepare` made, once for all layers.
        cache: what its `split_cache` leaves whole, read in place by all layers.
        chunk: where the tokens come in a cache; None without one.
        cursor: of the cache before these tokens; None without one.
        given: what mixers of earlier stages gave, by name.
        key: of this layer, step and part of the batch, for what is random in training; None: no
            layer draws anything.
    """

    segment_ids: Int[Array, "B T"] | None
    positions: Int[Array, "B T"]
    prepared: Any = None
    cache: Any = None
    chunk: Chunk | None = None
    cursor: Cursor | None = None
    given: Mapping[str, Array] = struct.field(default_factory=dict)
    key: Key[Array, ""] | None = None


class Mixed(NamedTuple):
    """Result of a mixer.

    Attributes:
        y: [B, T, D].
        written: what `write_cache` takes of this layer; None without a cache.
        given: arrays [B, T, ...] that all later stages get, by name, in `Context.given`. Only
            layers of a stage that is not repeated may give any.
    """

    y: Float[Array, "B T D"]
    written: Any = None
    given: Mapping[str, Array] = MappingProxyType({})


class Mixer(Branch):
    """y_t depends on x_s for s <= t only; [B, T, D] -> [B, T, D].

    A mixer defines `__call__`, `forward_flops` and, where it can decode, its part of the cache:
    `init_cache`, `split_cache` and `write_cache`. These and `prepare` need no parameters; they are
    called on the unbound module, `spec.build(common)`.
    """

    def __call__(self, x: Float[Array, "B T D"], layer: Any, context: Context) -> Mixed:
        """Mixed tokens; `layer` is this layer's share of the cache, None without one."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")

    def prepare(self, positions: Int[Array, "B T"], dtype: jnp.dtype) -> Any:
        """What layers share and need not compute again, for example rotations."""
        del positions, dtype
        return None

    @property
    def document_limit(self) -> tuple[int, str] | None:
        """Most tokens that a document may have, and why, in a few words; None: any number."""
        return None

    def init_cache(
        self, params: Any, layers: int, batch: int, max_length: int, dtype: jnp.dtype
    ) -> tuple[Any, int]:
        """(an empty part of a cache for so many layers, most tokens that a row of it may hold).

        `params` are the layers' own, stacked. None where they are not known, and what depends on
        them raises ValueError.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define init_cache")

    def check_cache(self, part: Any, layers: int, cursor: Cursor) -> None:
        """ValueError for a part that `init_cache` does not make for this mixer, another model's."""
        size = cursor.length.shape[0], cursor.max_length
        dtype = jnp.dtype(self.common.dtype)
        check_like(part, jax.eval_shape(lambda: self.init_cache(None, layers, *size, dtype)[0]))

    def split_cache(self, part: Any) -> tuple[Any, Any]:
        """(leaves stacked by layer, each layer gets its own; what every layer sees whole)."""
        raise NotImplementedError(f"{type(self).__name__} does not define split_cache")

    def write_cache(self, part: Any, chunk: Chunk, cursor: Cursor, written: Any) -> Any:
        """The part after a chunk; `written` is stacked by layer, `cursor` the one after it."""
        raise NotImplementedError(f"{type(self).__name__} does not define write_cache")
