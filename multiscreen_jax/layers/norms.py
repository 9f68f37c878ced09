"""RMSNorm, alone and with a gate before or after it, and vectors of unit length."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from multiscreen_jax.layers.parameters import weight
from pallas_kernels.common.numerics import accumulation_dtype


def rms_normalize(x: Float[Array, "*B D"], eps: float) -> Float[Array, "*B D"]:
    """x / sqrt(mean(x^2) + eps) over the last axis, in `promote_types(dtype, float32)`."""
    x = x.astype(accumulation_dtype(x))
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


def l2_normalize(x: Float[Array, "*B K"], eps: float = 1e-6) -> Float[Array, "*B K"]:
    """x / sqrt(sum(x^2) + eps) over the last axis, in `promote_types(dtype, float32)`.

    The delta rule's keys and queries; unlike `unit_norm`, small vectors stay short.
    """
    x = x.astype(accumulation_dtype(x))
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + eps)


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * scale, over the last axis.

    Statistics in `promote_types(dtype, float32)`, the result in `dtype`.

    Attributes:
        eps: inside the root.
        dtype, param_dtype: of the result, and of the gain.
        gain: whether there is a learned `scale` [D], initially one.
        axis: what the last axis is, see `sharding.LogicalAxes`.
    """

    eps: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    gain: bool = True
    axis: str = "gain"

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        x = rms_normalize(x, self.eps)
        if self.gain:
            scale = _gain(self, "scale", x.shape[-1:], (self.axis,))
            x = x * scale.astype(x.dtype)
        return x.astype(self.dtype)


class NormThenGate(nn.Module):
    """y = RMSNorm(x) * silu(gate), over the last axis: a norm for each head (Gated DeltaNet).

    Attributes:
        eps, dtype, param_dtype: as in `RMSNorm`, whose `scale` [V] all heads share.
    """

    eps: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H V"], gate: Float[Array, "B T H V"]
    ) -> Float[Array, "B T H V"]:
        scale = _gain(self, "scale", x.shape[-1:], ("value",))
        y = rms_normalize(x, self.eps)
        return (y * scale.astype(y.dtype) * jax.nn.silu(gate.astype(y.dtype))).astype(self.dtype)


class GateThenNorm(nn.Module):
    """y = RMSNorm(x * silu(gate)), over all channels of a group of heads (Mamba-2).

    Attributes:
        eps, dtype, param_dtype: as in `RMSNorm`; its gain is `head_scale` [H, V].
        groups: G, a divisor of H; each group of H / G heads has a mean of its own.
    """

    eps: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    groups: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H V"], gate: Float[Array, "B T H V"]
    ) -> Float[Array, "B T H V"]:
        scale = _gain(self, "head_scale", x.shape[-2:], ("heads", "value"))
        y = x.astype(accumulation_dtype(x))
        y = y * jax.nn.silu(gate.astype(y.dtype))
        y = rms_normalize(y.reshape(*y.shape[:2], self.groups, -1), self.eps).reshape(y.shape)
        return (y * scale.astype(y.dtype)).astype(self.dtype)


def _gain(norm: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> Array:
    return weight(norm, name, nn.initializers.ones, shape, axes, norm.param_dtype, decay=False)
