"""What Log-Linear Attention (arXiv:2506.04761) adds to a mixer: a weight for every level."""

import dataclasses
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from multiscreen_jax import fields
from multiscreen_jax.mixers.mixer import Mixer
from pallas_kernels.log_linear import LogLinearState, empty_state, level_count
from pallas_kernels.log_linear.levels import BEYOND_LEVELS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels:
    """Fields that a log-linear spec, or config, adds to those of its parent; named before it.

    Attributes:
        num_levels: L; documents of 2^(L-1) tokens fit.
        beyond_levels: what longer ones do: "error" (NaN where the length is known only at run
            time), "clamp" or "extend", see `pallas_kernels.log_linear_ssd`.
        max_documents: a packed row may hold; one that holds more is NaN. Each costs up to a chunk.
    """

    num_levels: int = 15
    beyond_levels: str = "error"
    max_documents: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()  # pyright: ignore[reportAttributeAccessIssue]
        fields.positive_integers(self, "num_levels", "max_documents")
        fields.one_of("beyond_levels", self.beyond_levels, BEYOND_LEVELS)

    def for_one_document(self) -> Self:
        """The same where no row holds more: the ops pay for the room that more could need."""
        return dataclasses.replace(self, max_documents=1)


def level_limit(spec: Any) -> tuple[int, str] | None:
    """`Mixer.document_limit` of a log-linear mixer."""
    fits = 2 ** (spec.num_levels - 1)
    why = (
        f"the model's {spec.num_levels} levels hold {fits} tokens; more need more of them, or "
        'beyond_levels="clamp" or "extend"'
    )
    return (fits, why) if spec.beyond_levels == "error" else None


def level_scales(mixer: Mixer, x: Float[Array, "B T D"]) -> Float[Array, "B T H L"]:
    """`positive_scales` of the projection x W, one for each level, head and token."""
    sizes = {"heads": mixer.spec.num_heads, "level": mixer.spec.num_levels}
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


def level_settings(spec: Any, x: Float[Array, "B T D"], segment_ids: Any) -> dict[str, Any]:
    """Arguments of the log-linear ops that follow from the spec."""
    documents = None if segment_ids is None else min(spec.max_documents, x.shape[1])
    return {"beyond_levels": spec.beyond_levels, "max_documents": documents}


def level_step_flops(spec: Any, products: int) -> float:
    """`products` products of a vector with the state of every level, empty ones included."""
    s = spec
    return 2 * s.num_levels * products * s.num_heads * s.key_dim * s.value_dim


def empty_levels(spec: Any, batch: int, max_length: int, dtype: jnp.dtype) -> LogLinearState:
    """The state before the first token, with the levels that `max_length` tokens need."""
    s, levels = spec, spec.num_levels
    if s.beyond_levels == "extend":
        levels = max(levels, level_count(max_length))
    dtype = jnp.promote_types(dtype, jnp.float32)
    return empty_state(batch, s.num_heads, levels, s.key_dim, s.value_dim, dtype)
