"""Causal depthwise convolution over a few tokens, with a window of inputs as its cache."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from multiscreen_jax.layers.parameters import weight
from pallas_kernels.common.numerics import accumulation_dtype


class ShortConvolution(nn.Module):
    """y_t = silu(sum_i kernel_i x_{t-W+1+i} + bias), for every channel alone. (Mamba, PyTorch's
    order: the kernel's last entry weighs the token itself.)

    Tokens of other documents, and those before the first, count as zero. Sums are in
    `promote_types(dtype, float32)`.

    Attributes:
        width: W.
        axes: what the channels *C are, see `sharding.LogicalAxes`.
        kernel_init: of `kernel` [W, *C]; `bias` [*C] starts at zero.
        use_bias: whether there is one.
        dtype, param_dtype: of inputs and result, and of the parameters.
    """

    width: int
    axes: tuple[str | None, ...]
    kernel_init: Any
    use_bias: bool
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T *C"],
        segment_ids: Int[Array, "B T"] | None,
        window: Float[Array, "B W *C"] | None = None,
        continues: Bool[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B T *C"], Float[Array, "B W *C"] | None]:
        """The convolved tokens and, with a window, the next one.

        Args:
            x: any channel axes.
            segment_ids: documents, 0 for padding; None is one document a row.
            window: the W - 1 inputs before x, zeros where there were fewer.
            continues: of each row, whether its first token belongs to the window's document;
                None is all. Read only where there are `segment_ids`.
        """
        channels = x.shape[2:]
        kernel = weight(
            self, "kernel", self.kernel_init, (self.width, *channels), ("tap", *self.axes),
            self.param_dtype,
        )  # fmt: skip
        x = x.astype(self.dtype)
        before = jnp.zeros((x.shape[0], self.width - 1, *channels), x.dtype)
        if window is not None:
            before = window.astype(x.dtype)
        inputs = jnp.concatenate([before, x], axis=1)
        ids = None if segment_ids is None else _with_window_ids(segment_ids, continues, self.width)

        y = jnp.zeros((), accumulation_dtype(x))
        for i in range(self.width):
            tap = inputs[:, i : i + x.shape[1]].astype(y.dtype)
            if ids is not None and i < self.width - 1:
                same = ids[:, i : i + x.shape[1]] == segment_ids
                tap = jnp.where(_over_channels(same, tap), tap, 0)
            y = y + tap * kernel[i].astype(y.dtype)
        if self.use_bias:
            bias = weight(
                self, "bias", nn.initializers.zeros, channels, self.axes, self.param_dtype,
                decay=False,
            )  # fmt: skip
            y = y + bias.astype(y.dtype)
        y = jax.nn.silu(y).astype(self.dtype)
        if window is None:
            return y, None
        return y, _next_window(inputs, segment_ids, ids, self.width).astype(window.dtype)


def _with_window_ids(segment_ids: Array, continues: Array | None, width: int) -> Array:
    """Ids of the window's entries and the tokens; -1 where the window is another document."""
    first = segment_ids[:, :1]
    if continues is not None:
        first = jnp.where(continues[:, None], first, -1)
    return jnp.concatenate([jnp.repeat(first, width - 1, axis=1), segment_ids], axis=1)


def _next_window(inputs: Array, segment_ids: Array | None, ids: Array | None, width: int) -> Array:
    """The last W - 1 inputs of each row's last document, padding at the end left out."""
    if segment_ids is None or ids is None:
        return inputs[:, inputs.shape[1] - (width - 1) :]
    count = jnp.sum(segment_ids != 0, axis=1, keepdims=True)
    place = count + jnp.arange(width - 1)
    window = jnp.take_along_axis(inputs, _over_channels(place, inputs), axis=1)
    last = jnp.take_along_axis(segment_ids, jnp.maximum(count - 1, 0), axis=1)
    # A row of padding alone keeps the window it had.
    keep = (count == 0) | (jnp.take_along_axis(ids, place, axis=1) == last)
    return jnp.where(_over_channels(keep, window), window, 0)


def _over_channels(x: Array, like: Array) -> Array:
    return x.reshape(*x.shape, *[1] * (like.ndim - x.ndim))
