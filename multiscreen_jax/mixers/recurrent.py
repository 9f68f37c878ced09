"""Parts that mixers with a state share: their cache, short convolutions and decay rates."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from multiscreen_jax import fields
from multiscreen_jax.cache import Chunk, Cursor
from multiscreen_jax.layers.short_convolution import ShortConvolution
from multiscreen_jax.mixers.mixer import Context, Mixer
from pallas_kernels.common.dispatch import check_implementation

# Of the step softplus(step_bias): log-uniform between the first two, and at least the third.
_STEP_MIN, _STEP_MAX, _STEP_FLOOR = 1e-3, 1e-1, 1e-4


class RecurrentMixer(Mixer):
    """A mixer that keeps windows and states of a fixed size; it defines `empty_layer`.

    With a cache it gets its layer's windows and states, and returns the new ones in the same
    structure, a dict. Their size does not depend on the context, but for the number of levels of
    log-linear states.
    """

    def empty_layer(self, batch: int, max_length: int, dtype: jnp.dtype) -> dict[str, Any]:
        """Windows in `dtype` and states in `promote_types(dtype, float32)`, of one layer."""
        raise NotImplementedError(f"{type(self).__name__} does not define empty_layer")

    def init_cache(
        self, params: Any, layers: int, batch: int, max_length: int, dtype: jnp.dtype
    ) -> tuple[dict[str, Any], int]:
        del params
        empty = self.empty_layer(batch, max_length, dtype)
        stacked = jax.tree.map(lambda x: jnp.zeros((layers, *x.shape), x.dtype), empty)
        return stacked, max_length

    def split_cache(self, part: dict[str, Any]) -> tuple[dict[str, Any], None]:
        return part, None

    def write_cache(
        self, part: dict[str, Any], chunk: Chunk, cursor: Cursor, written: dict[str, Any]
    ) -> dict[str, Any]:
        del part, chunk, cursor
        return written

    def decode_flops(self, context: int) -> float:
        """One step of the recurrence; it does not depend on the context."""
        del context
        return self.forward_flops(1)

    def convolve(
        self,
        name: str,
        x: Float[Array, "B T H K"],
        axes: tuple[str, str],
        layer: Any,
        context: Context,
        bias: bool,
    ) -> tuple[Float[Array, "B T H K"], Float[Array, "B W H K"] | None]:
        """silu(short convolution of x), and the next window of this name; `axes` are x's last."""
        c, width = self.common, self.spec.conv_width
        convolution = ShortConvolution(
            width, axes, c.init(name, (width, *x.shape[2:])), bias, jnp.dtype(c.dtype),
            jnp.dtype(c.param_dtype), name=name,
        )  # fmt: skip
        window = None if layer is None else layer[name]
        return convolution(x, context.segment_ids, window, continues(context))

    def step_and_decay(
        self, x: Float[Array, "B T D"], heads: int, rate_init: Any
    ) -> tuple[Float[Array, "B T H"], Float[Array, "B T H"]]:
        """`decay` of the projection x W."""
        each = (heads,), ("heads",)
        bias = self.weight("step_bias", initial_step_bias, *each, decay=False)
        log_rate = self.weight("log_rate", rate_init, *each, decay=False)
        return decay(self.project_gate("step", x, heads=heads), bias, log_rate)


def decay(
    step: Float[Array, "B T H"], step_bias: Float[Array, " H"], log_rate: Float[Array, " H"]
) -> tuple[Float[Array, "B T H"], Float[Array, "B T H"]]:
    """Steps dt = softplus(step + step_bias), and decays g = -exp(log_rate) dt, in step's dtype.

    `log_rate` and `step_bias` are A_log and dt_bias of Mamba-2's released code.
    """
    step = jax.nn.softplus(step + step_bias.astype(step.dtype))
    return step, -jnp.exp(log_rate.astype(step.dtype)) * step


def continues(context: Context) -> Bool[Array, " B"] | None:
    """Whether each row's first token goes on with the cache's document; None is all rows.

    A row of padding alone counts as going on: what it carries is not to be lost.
    """
    if context.chunk is None or context.segment_ids is None:
        return None
    return context.chunk.continues[:, 0] | (context.segment_ids[:, 0] == 0)


def carried(state: Any, context: Context) -> Any:
    """The state (any pytree of [B, ...]) before the first token: zero where a document begins."""
    goes_on = continues(context)
    if goes_on is None:
        return state

    def reset(x: Array) -> Array:
        return jnp.where(goes_on.reshape(-1, *[1] * (x.ndim - 1)), x, 0)

    return jax.tree.map(reset, state)


def window_zeros(spec: Any, batch: int, heads: int, dim: int, dtype: jnp.dtype) -> Array:
    """The window of a short convolution before the first token."""
    return jnp.zeros((batch, spec.conv_width - 1, heads, dim), dtype)


def state_zeros(spec: Any, batch: int, dtype: jnp.dtype) -> Float[Array, "B H K V"]:
    """A state before the first token, in `promote_types(dtype, float32)`."""
    shape = (batch, spec.num_heads, spec.key_dim, spec.value_dim)
    return jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32))


def check_states(spec: Any) -> None:
    """Checks what all specs of these mixers share: heads, their sizes, and the op's form."""
    fields.positive_integers(spec, "num_heads", "key_dim", "value_dim")
    if hasattr(spec, "conv_width"):
        fields.positive_integers(spec, "conv_width", at_least=2)
    check_implementation(spec.implementation)
    if isinstance(spec.implementation, list):  # specs are hashable
        object.__setattr__(spec, "implementation", tuple(spec.implementation))


def initial_step_bias(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """b with softplus(b) log-uniform in [0.001, 0.1]."""
    low, high = math.log(_STEP_MIN), math.log(_STEP_MAX)
    wide = jnp.promote_types(dtype, jnp.float32)
    step = jnp.exp(jax.random.uniform(key, shape, wide, low, high))
    step = jnp.maximum(step, _STEP_FLOOR)
    return (step + jnp.log(-jnp.expm1(-step))).astype(dtype)


def log_uniform_rate(low: float, high: float) -> Any:
    """Initialiser log(U(low, high)) of decay rates."""

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        wide = jnp.promote_types(dtype, jnp.float32)
        rate = jax.random.uniform(key, shape, wide, low, high)
        return jnp.log(jnp.maximum(rate, jnp.finfo(wide).tiny)).astype(dtype)

    return init


def log_counting_rate(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """log(1), log(2), ..., log(H): the decay rates of Log-Linear Mamba-2 at the start."""
    del key
    wide = jnp.promote_types(dtype, jnp.float32)
    return jnp.log(jnp.arange(1, shape[0] + 1, dtype=wide)).astype(dtype)
