"""What a token mixer is to the decoder: a module, its part of the cache, and its counts."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from multiscreen_jax.cache import Chunk, Cursor, check_cursor
from multiscreen_jax.layers import parameters
from pallas_kernels.common.numerics import accumulation_dtype


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
    """

    segment_ids: Int[Array, "B T"] | None
    positions: Int[Array, "B T"]
    prepared: Any = None
    cache: Any = None
    chunk: Chunk | None = None


class Mixer(nn.Module):
    """y_t depends on x_s for s <= t only; [B, T, D] -> [B, T, D].

    A mixer defines `__call__`, `init_cache`, `split_cache` and `write_cache`, and the two counts.

    Attributes:
        config: of the model, or of the part of it that these layers are.
    """

    config: Any

    def __call__(
        self, x: Float[Array, "B T D"], layer: Any, context: Context
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Mixed tokens, and what `write_cache` takes of this layer (None without a cache).

        `layer` is this layer's share of the cache.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")

    @staticmethod
    def prepare(config: Any, positions: Int[Array, "B T"], dtype: jnp.dtype) -> Any:
        """What layers share and need not compute again, for example rotations."""
        del config, positions, dtype
        return None

    @classmethod
    def init_cache(
        cls, config: Any, params: Any, layers: int, batch: int, max_length: int, dtype: jnp.dtype
    ) -> Any:
        """An empty cache of `layers` layers, a pytree with a `cursor`."""
        raise NotImplementedError(f"{cls.__name__} does not define init_cache")

    @classmethod
    def check_cache(cls, config: Any, layers: int, cache: Any) -> None:
        """ValueError for a cache that `init_cache` does not make for this config, another model's.

        This one sees whether it is a cache at all; mixers that know more look closer.
        """
        del config, layers
        check_cursor(cache)

    @classmethod
    def split_cache(cls, cache: Any) -> tuple[Any, Any]:
        """(leaves stacked by layer, each layer gets its own; what every layer sees whole)."""
        raise NotImplementedError(f"{cls.__name__} does not define split_cache")

    @classmethod
    def write_cache(cls, cache: Any, chunk: Chunk, cursor: Cursor, written: Any) -> Any:
        """The cache after a chunk; `written` is stacked by layer, `cursor` the one after it."""
        raise NotImplementedError(f"{cls.__name__} does not define write_cache")

    @classmethod
    def parameter_count(cls, config: Any) -> int:
        """Numbers in one layer's parameters, without the norm before it."""
        raise NotImplementedError(f"{cls.__name__} does not define parameter_count")

    @classmethod
    def forward_flops(cls, config: Any, length: int) -> float:
        """FLOPs of one layer over one sequence (a multiply-add counts two)."""
        raise NotImplementedError(f"{cls.__name__} does not define forward_flops")

    @classmethod
    def decode_flops(cls, config: Any, context: int) -> float:
        """FLOPs of one layer for one token after `context` others, with a cache."""
        return cls.forward_flops(config, context + 1) - cls.forward_flops(config, context)

    def weight(
        self,
        name: str,
        init: Any,
        shape: Sequence[int],
        axes: Sequence[str | None],
        *,
        decay: bool = True,
        rule: str = "adamw",
    ) -> Array:
        """A parameter in the config's `param_dtype`, with its facts: see `parameters.weight`."""
        dtype = self.config.param_dtype
        return parameters.weight(self, name, init, shape, axes, dtype, decay=decay, rule=rule)

    def project(self, name: str, x: Float[Array, "B T D"], **sizes: int) -> Float[Array, "..."]:
        """x W in the config's dtype; W is the parameter `name`.

        `project("query", x, heads=H, key=K)` gives [B, T, H, K] by a W [D, H, K]: each name is
        that of an axis (see `sharding.LogicalAxes`), with its size.
        """
        return self._product(name, x, sizes, jnp.dtype(self.config.dtype))

    def project_gate(
        self, name: str, x: Float[Array, "B T D"], **sizes: int
    ) -> Float[Array, "..."]:
        """The same, accumulated and kept in `promote_types(dtype, float32)`: for gates."""
        return self._product(name, x, sizes, accumulation_dtype(x))

    def project_out(
        self, name: str, y: Float[Array, "B T H V"], dim: str = "value"
    ) -> Float[Array, "B T D"]:
        """y W summed over heads; W is the parameter `name` [H, V, D], and `dim` its second axis."""
        c = self.config
        dtype = jnp.dtype(c.dtype)
        shape = (*y.shape[2:], c.model_dim)
        matrix = self.weight(name, c.output_init(len(shape)), shape, ("heads", dim, "embed"))
        return jnp.einsum(
            "bthv,hvd->btd", y.astype(dtype), matrix.astype(dtype), precision=c.precision
        )

    def _product(self, name: str, x: Array, sizes: dict[str, int], out: jnp.dtype) -> Array:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        shape = (x.shape[-1], *sizes.values())
        matrix = self.weight(name, c.weight_init(), shape, ("embed", *sizes))
        return jnp.einsum(
            "btd,d...->bt...", x.astype(dtype), matrix.astype(dtype),
            precision=c.precision, preferred_element_type=out,
        )  # fmt: skip
