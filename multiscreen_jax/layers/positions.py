"""Positions inside documents, and MiPE, Multiscreen's minimal positional encoding."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

POSITION_RULES = ("absolute", "wrap")


def document_positions(
    segment_ids: Int[Array, "B T"] | None, batch: int, length: int
) -> Int[Array, "B T"]:
    """Position of every token counted from the start of its own document."""
    index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    if segment_ids is None:
        return index
    previous = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    start = jax.lax.cummax(jnp.where(segment_ids != previous, index, 0), axis=1)
    return index - start


def mipe_gamma(window: Float[Array, " H"], threshold: float) -> Float[Array, " H"]:
    """gamma(w) = (cos(pi w / w_th) + 1) / 2 below the threshold, else zero. (v3 eq. 6)"""
    below = window < threshold
    # The inner `where` keeps cos(inf) = NaN out of the gradient.
    inside = jnp.where(below, window, threshold)
    return jnp.where(below, (jnp.cos(jnp.pi * inside / threshold) + 1) / 2, 0)


def mipe_turns(
    positions: Int[Array, "B T"],
    window: Float[Array, " H"],
    threshold: float,
    wrap_length: int | None = None,
) -> Float[Array, "B T H"]:
    """MiPE's angle phi = pi i gamma(w) / w in turns, i.e. phi / 2 pi, reduced to [-1/2, 1/2].

    With `wrap_length` the position is `i mod w` from that index on: a rule of two PyTorch ports,
    not of the paper, offered to run their checkpoints. It is discontinuous.
    """
    # With w = inf, gamma is zero: divide by the threshold there instead, so that nothing is NaN.
    frequency = mipe_gamma(window, threshold) / (2 * jnp.minimum(window, threshold))
    if wrap_length is None:
        return _turns(positions[..., None], frequency)
    i = positions[..., None].astype(window.dtype)
    finite = jnp.where(jnp.isfinite(window), window, threshold)
    wrapped = i - finite * jax.lax.stop_gradient(jnp.floor(i / finite))
    turns = jnp.where(i < wrap_length, i, wrapped) * frequency
    return turns - jnp.round(jax.lax.stop_gradient(turns))


@jax.custom_jvp
def _turns(positions, frequency):
    """positions * frequency minus its nearest integer.

    In float32 the product alone loses whole turns at positions of a million. Instead the frequency
    is a 32-bit binary fraction (error 2^-33 of a turn per token, the same for query and key) and
    the product wraps in unsigned arithmetic, which is exact at any position.
    """
    if frequency.dtype == jnp.float64:
        turns = positions.astype(jnp.float64) * frequency
        return turns - jnp.round(turns)
    fraction = jnp.round(frequency * 2.0**32).astype(jnp.uint32)
    wrapped = jax.lax.bitcast_convert_type(positions.astype(jnp.uint32) * fraction, jnp.int32)
    return wrapped.astype(frequency.dtype) * jnp.asarray(2.0**-32, frequency.dtype)


@_turns.defjvp
def _turns_jvp(primals, tangents):
    positions, frequency = primals
    return _turns(positions, frequency), positions.astype(frequency.dtype) * tangents[1]


def mipe(x: Float[Array, "B T H K"], turns: Float[Array, "B T H"]) -> Float[Array, "B T H K"]:
    """Turn the first two coordinates of x by 2 pi `turns`, as every published port does. (eq. 7)

    (a0, a1) -> (a0 cos - a1 sin, a0 sin + a1 cos). The paper writes the opposite sense, which is
    the same model class (query and key turn together) but other logits for given weights.
    """
    angle = 2 * jnp.pi * turns
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a0, a1 = x[..., 0], x[..., 1]
    turned = jnp.stack([a0 * cos - a1 * sin, a0 * sin + a1 * cos], axis=-1)
    return jnp.concatenate([turned, x[..., 2:]], axis=-1)
