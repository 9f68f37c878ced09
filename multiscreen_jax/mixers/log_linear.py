"""What Log-Linear Attention (arXiv:2506.04761) adds to a mixer: a weight for every level."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from multiscreen_jax.mixers.mixer import Mixer
from pallas_kernels.log_linear import LogLinearState, empty_state, level_count


def level_scales(mixer: Mixer, x: Float[Array, "B T D"]) -> Float[Array, "B T H L"]:
    """`positive_scales` of the projection x W, one for each level, head and token."""
    c = mixer.config
    sizes = {"heads": c.num_heads, "level": c.num_levels}
    gain = mixer.weight(
        "level_gain", nn.initializers.ones, tuple(sizes.values()), tuple(sizes), decay=False
    )
    return positive_scales(mixer.project_gate("level", x, **sizes), gain)


def positive_scales(
    level: Float[Array, "B T H L"], gain: Float[Array, "H L"]
) -> Float[Array, "B T H L"]:
    """lambda = softplus(gain * level), in level's dtype.

    The gain starts at one and the product near zero, so every lambda starts near log 2. (The
    authors' released code; the paper asks for a non-negative function of x alone.)
    """
    return jax.nn.softplus(gain.astype(level.dtype) * level)


def level_settings(config: Any, x: Float[Array, "B T D"], segment_ids: Any) -> dict[str, Any]:
    """Arguments of the log-linear ops that follow from the config."""
    documents = None if segment_ids is None else min(config.max_documents, x.shape[1])
    return {"beyond_levels": config.beyond_levels, "max_documents": documents}


def level_step_flops(config: Any, products: int) -> float:
    """`products` products of a vector with the state of every level, empty ones included."""
    c = config
    return 2 * c.num_levels * products * c.num_heads * c.key_dim * c.value_dim


def empty_levels(config: Any, batch: int, max_length: int, dtype: jnp.dtype) -> LogLinearState:
    """The state before the first token, with the levels that `max_length` tokens need."""
    c = config
    levels = c.num_levels
    if c.beyond_levels == "extend":
        levels = max(levels, level_count(max_length))
    dtype = jnp.promote_types(dtype, jnp.float32)
    return empty_state(batch, c.num_heads, levels, c.key_dim, c.value_dim, dtype)
