"""Running a Multiscreen layer by layer to read what its tiles computed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from multiscreen_jax.layers.embedding import check_segments, check_tokens
from multiscreen_jax.layers.positions import document_positions
from multiscreen_jax.mixers.mixer import Context
from multiscreen_jax.models.fit import check_params
from multiscreen_jax.models.multiscreen import Multiscreen
from multiscreen_jax.models.trunk import TrunkLayer


def scan_tiles(
    model: Multiscreen,
    params: Any,
    tokens: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"] | None,
    read: Callable[[dict[str, Array]], Any],
) -> Any:
    """`read(sown)` of every layer, stacked on axis 0.

    `sown` is what the layer's tiles leave under `intermediates`: query, key [B, T, H, K], window,
    width [H], screening_output [B, T, H, V], ... Only what `read` returns is kept, so memory is
    that of one layer, however deep the model. Meant for use inside jit.
    """
    check_params(model, params)
    (stage,) = model.config.stages()
    layer = TrunkLayer(model.config.common, *stage.pattern)
    context = Context(segment_ids, document_positions(segment_ids, *tokens.shape))
    own = jnp.int32(0), None  # a depth that these layers do not ask for, and no cache

    def step(x: Array, layer_params: Any) -> tuple[Array, Any]:
        (x, _), sown = layer.apply(
            {"params": layer_params}, x, own, context, mutable=["intermediates"]
        )
        return x, read(sown["intermediates"]["tiles"])

    x = model.apply({"params": params}, tokens, method=lambda m, ids: m.embedding.encode(ids))
    return jax.lax.scan(step, x, params["layers"])[1]


def check_model(model: Any, asked_for: str) -> None:
    """TypeError unless the model is a Multiscreen: only its tiles accept and reject keys."""
    if not isinstance(model, Multiscreen):
        raise TypeError(f"{asked_for} needs a Multiscreen model, got {type(model).__name__}")


def as_batch(
    model: Multiscreen, tokens: Any, segment_ids: Any = None
) -> tuple[Array, Array | None]:
    """Tokens (and segment ids) as int32 arrays [B, T], a single prompt [T] as one row; checked."""
    tokens = _rows("tokens", tokens)
    check_tokens(tokens, model.config.vocab_size)
    if segment_ids is None:
        return tokens, None
    segment_ids = _rows("segment_ids", segment_ids)
    check_segments(segment_ids, tokens.shape)
    return tokens, segment_ids


def _rows(name: str, values: Any) -> Array:
    if not isinstance(values, jax.Array):
        values = np.asarray(values)
        if np.issubdtype(values.dtype, np.integer):
            values = values.astype(np.int32)
    if values.ndim not in (1, 2) or not jnp.issubdtype(values.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be integers [T] or [B, T], got {values.dtype} {values.shape}"
        )
    return values[None] if values.ndim == 1 else values
