"""SwiGLU feed-forward layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class SwiGLU(nn.Module):
    """y = (silu(x G) * (x U)) D without biases. (arXiv:2002.05202, eq. 6)

    Attributes:
        model_dim, hidden_dim: D and F.
        init_scale, output_init_scale: standard deviations of gate and up, and of down.
        dtype, param_dtype, precision: of the products, of the weights, of the multiplications.
    """

    model_dim: int
    hidden_dim: int
    init_scale: float
    output_init_scale: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    precision: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        def product(name: str, x: Array, rows: int, columns: int, deviation: float) -> Array:
            weight = self.param(
                name, nn.initializers.normal(deviation), (rows, columns), self.param_dtype
            )
            return jnp.dot(
                x.astype(self.dtype), weight.astype(self.dtype), precision=self.precision
            )

        gate = product("gate", x, self.model_dim, self.hidden_dim, self.init_scale)
        up = product("up", x, self.model_dim, self.hidden_dim, self.init_scale)
        hidden = jax.nn.silu(gate) * up
        return product("down", hidden, self.hidden_dim, self.model_dim, self.output_init_scale)
