"""SwiGLU feed-forward layer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from multiscreen_jax.layers.parameters import weight


class SwiGLU(nn.Module):
    """y = (silu(x G) * (x U)) D without biases. (arXiv:2002.05202, eq. 6)

    Attributes:
        config: has model_dim D, feed_forward_dim F, dtypes, precision and initialisers.
    """

    config: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        c = self.config
        dtype = jnp.dtype(c.dtype)

        def product(name: str, x: Array, columns: int, axes: tuple[str, str], init: Any) -> Array:
            matrix = weight(self, name, init, (x.shape[-1], columns), axes, c.param_dtype)
            return jnp.dot(x.astype(dtype), matrix.astype(dtype), precision=c.precision)

        inward, outward = ("embed", "feed_forward"), ("feed_forward", "embed")
        gate = product("gate", x, c.feed_forward_dim, inward, c.weight_init())
        up = product("up", x, c.feed_forward_dim, inward, c.weight_init())
        return product("down", jax.nn.silu(gate) * up, c.model_dim, outward, c.output_init(2))

    @staticmethod
    def parameter_count(config: Any) -> int:
        return 3 * config.model_dim * config.feed_forward_dim

    @staticmethod
    def forward_flops(config: Any, length: int) -> float:
        """FLOPs over one sequence (a multiply-add counts two)."""
        return 2 * length * SwiGLU.parameter_count(config)
