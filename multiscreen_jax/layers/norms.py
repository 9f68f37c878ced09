"""RMSNorm."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.common.numerics import accumulation_dtype


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * scale, over the last axis.

    Statistics in `promote_types(dtype, float32)`, the result in `dtype`.

    Attributes:
        eps: inside the root.
        dtype, param_dtype: of the result, and of the gain.
        gain: whether there is a learned `scale` [D], initially one.
    """

    eps: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    gain: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        x = x.astype(accumulation_dtype(x))
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        if self.gain:
            scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
            x = x * scale.astype(x.dtype)
        return x.astype(self.dtype)
