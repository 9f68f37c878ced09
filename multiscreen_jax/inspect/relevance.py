"""Which keys every tile of a Multiscreen accepts: whole maps of a prompt, or counts of long texts.

Screening has no softmax: a rejected key counts exactly zero. So "accepted" is a fact and not a
threshold on a picture: relevance d_ij = alpha_ij m_ij is positive. (Multiscreen, arXiv:2604.01178
v3, eq. 9-12)
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from multiscreen_jax.fields import is_integer
from multiscreen_jax.inspect.blocks import fold_windows
from multiscreen_jax.inspect.tiles import as_batch, check_model, scan_tiles
from multiscreen_jax.jitted import jitted
from multiscreen_jax.layers.positions import document_positions
from pallas_kernels.screening.reference import relevance

MAP_BYTES_LIMIT = 2**30
_SUMMED = 128  # queries whose counts are summed on the device


@dataclasses.dataclass(frozen=True)
class RelevanceMaps:
    """Relevance of every pair of tokens of one prompt, for every tile of some layers.

    Attributes:
        relevance: float32 [N, H, T, T]; [n, h, i, j] is how strongly query i reads key j: 0 where
            the key is rejected, outside the window, in the future or in another document.
        window: [N, H], in tokens; may be infinite.
        width: [N, H], the acceptance width in (0, 1).
        layers: index in the model of each of the N layers.
        segment_ids: int32 [T], documents of a packed row, 0 padding; None: one document.
    """

    relevance: Float[np.ndarray, "N H T T"]
    window: Float[np.ndarray, "N H"]
    width: Float[np.ndarray, "N H"]
    layers: tuple[int, ...]
    segment_ids: Int[np.ndarray, " T"] | None = None

    def in_window(self) -> np.ndarray:
        """bool [N, H, T, T]: real tokens of one document at distances 0 <= i - j < window."""
        position = np.arange(self.relevance.shape[-1])
        distance = position[:, None] - position
        inside = (distance >= 0) & (distance < self.window[:, :, None, None])
        if self.segment_ids is None:
            return inside
        same = self.segment_ids[:, None] == self.segment_ids
        return inside & same & (self.segment_ids > 0)

    def share_accepted(self) -> Float[np.ndarray, "N H"]:
        """Accepted pairs over pairs inside the window; 0 where there are none."""
        pairs = self.in_window().sum((-1, -2))
        return (self.relevance > 0).sum((-1, -2)) / np.maximum(pairs, 1)


@dataclasses.dataclass(frozen=True)
class Acceptance:
    """How many pairs of tokens each tile accepts; all arrays are [N, H].

    Attributes:
        in_window: int64, pairs of real tokens of one document at distances 0 <= i - j < window.
        accepted: int64, those with non-zero relevance.
        silent_queries: int64, queries that accept no key at all: their tile adds exactly nothing.
        queries: number of real tokens (the same for every tile).
        window, width: of each tile; windows may be infinite.
    """

    in_window: Int[np.ndarray, "N H"]
    accepted: Int[np.ndarray, "N H"]
    silent_queries: Int[np.ndarray, "N H"]
    queries: int
    window: Float[np.ndarray, "N H"]
    width: Float[np.ndarray, "N H"]

    def share_accepted(self) -> Float[np.ndarray, "N H"]:
        """Accepted pairs over pairs inside the window; 0 where there are none."""
        return self.accepted / np.maximum(self.in_window, 1)

    def share_silent(self) -> Float[np.ndarray, "N H"]:
        """Share of the queries that accept nothing."""
        return self.silent_queries / max(self.queries, 1)


def relevance_maps(
    model: Any,
    params: Any,
    tokens: Any,
    layers: Sequence[int] | None = None,
    segment_ids: Any = None,
) -> RelevanceMaps:
    """Relevance maps of one prompt, meant for up to about a thousand tokens.

    Args:
        model, params: a Multiscreen and its parameters.
        tokens: integers [T] or [1, T].
        layers: which layers, counted from 0 (negative from the end); None: all.
        segment_ids: documents of a packed row [T] or [1, T], from 1; 0 is padding.

    Raises:
        TypeError: another kind of model.
        ValueError: more than one prompt, a layer that does not exist, or maps of more than
            `MAP_BYTES_LIMIT` bytes: choose fewer layers, or count with `acceptance`.

    Memory and time: N H T^2, in float32.
    """
    check_model(model, "relevance_maps")
    tokens, segment_ids = as_batch(model, tokens, segment_ids)
    chosen = _layers(layers, model.config.num_layers)
    rows, length = tokens.shape
    if rows != 1:
        raise ValueError(f"tokens must be one prompt, [T] or [1, T], got {tokens.shape}")
    size = 4 * len(chosen) * model.config.num_heads * length**2
    if size > MAP_BYTES_LIMIT:
        raise ValueError(
            f"relevance maps of {len(chosen)} layers of {model.config.num_heads} tiles over "
            f"{length} tokens take {size / 1e9:.1f} GB; allowed: {MAP_BYTES_LIMIT / 1e9:.1f} GB. "
            "Choose layers, shorten the prompt, or count with inspect.acceptance, whose memory is "
            "linear in the length"
        )
    inputs = jitted(_tile_inputs, model, params)(params, tokens, segment_ids)
    maps = [_layer_map(*(x[n] for x in inputs), segment_ids) for n in chosen]
    _, _, window, width = (np.asarray(x)[list(chosen)] for x in inputs)
    documents = None if segment_ids is None else np.asarray(segment_ids)[0]
    return RelevanceMaps(np.stack(maps), window, width, chosen, documents)


def acceptance(model: Any, params: Any, tokens: Any, segment_ids: Any = None) -> Acceptance:
    """Counts of accepted pairs for every tile, over all rows of a batch of any length.

    Args:
        model, params: a Multiscreen and its parameters.
        tokens: integers [B, T] or [T].
        segment_ids: documents of packed rows, the same shape, from 1; 0 is padding.

    Raises:
        TypeError: another kind of model.

    Cost: the forward pass, and one product over the keys inside each window, block by block:
    memory is linear in T, and so is time where windows are finite. Compiled once per model and
    shape, over all calls.
    """
    check_model(model, "acceptance")
    tokens, segment_ids = as_batch(model, tokens, segment_ids)
    counts = jax.device_get(jitted(_counts, model, params)(params, tokens, segment_ids))
    window, width = counts.pop("window"), counts.pop("width")
    # Counts of single blocks fit int32; those of long texts do not.
    totals = {name: x.astype(np.int64).sum((1, 3)) for name, x in counts.items()}
    queries = totals.pop("queries").flat[0]
    return Acceptance(**totals, queries=int(queries), window=window, width=width)


def _layers(layers: Sequence[int] | None, count: int) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(count))
    if isinstance(layers, str) or not isinstance(layers, Sequence | np.ndarray):
        raise ValueError(f"layers is {layers!r}; allowed: a sequence of integers, or None for all")
    for layer in layers:
        if not is_integer(layer) or not -count <= layer < count:
            raise ValueError(f"layers has {layer}; allowed: 0 to {count - 1}, or negative")
    if len(layers) == 0:
        raise ValueError("layers is empty; allowed: at least one layer, or None for all")
    return tuple(layer % count for layer in layers)


def _tile_inputs(model: Any, params: Any, tokens: Array, segment_ids: Array | None) -> Any:
    names = ("query", "key", "window", "width")
    return scan_tiles(model, params, tokens, segment_ids, lambda sown: [sown[n] for n in names])


def _layer_map(q: Array, k: Array, window: Array, width: Array, segment_ids: Any) -> np.ndarray:
    return np.asarray(_relevance(q, k, window, width, segment_ids)[0], np.float32)


_relevance = jax.jit(relevance)


def _counts(model: Any, params: Any, tokens: Array, segment_ids: Array | None) -> dict[str, Array]:
    """window, width [N, H]; counts of each row and block of queries, [N, B, H, blocks]."""

    def read(sown: dict[str, Array]) -> dict[str, Array]:
        window, width = sown["window"], sown["width"]
        counts = count_layer(sown["query"], sown["key"], window, width, segment_ids)
        return {**counts, "window": window, "width": width}

    return scan_tiles(model, params, tokens, segment_ids, read)


def count_layer(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    window: Float[Array, " H"],
    width: Float[Array, " H"],
    segment_ids: Int[Array, "B T"] | None = None,
) -> dict[str, Array]:
    """in_window, accepted, silent_queries, queries: int32 [B, H, blocks], one per query block."""
    batch, length, heads, _ = q.shape
    if segment_ids is None:
        segment_ids = jnp.ones((batch, length), jnp.int32)

    def start(batch: int, block: int) -> Array:
        return jnp.zeros((batch, block), jnp.int32)

    def add(keys_bc: Array, alpha: Array, distance: Array, window: Array) -> Array:
        return keys_bc + jnp.sum(alpha > 0, axis=2, dtype=jnp.int32)

    accepted = fold_windows(q, k, window, width, segment_ids, start, add)
    real = jnp.broadcast_to(segment_ids[:, None] > 0, (batch, heads, length))
    counts = {
        "in_window": keys_in_window(segment_ids, window),
        "accepted": accepted,
        "silent_queries": (accepted == 0) & real,
        "queries": real,
    }
    return {name: _sum_blocks(x) for name, x in counts.items()}


def keys_in_window(
    segment_ids: Int[Array, "B T"], window: Float[Array, " H"]
) -> Int[Array, "B H T"]:
    """A query at position p of its document has min(p + 1, ceil(window)) keys in its window."""
    batch, length = segment_ids.shape
    position = document_positions(segment_ids, batch, length)
    keys = jnp.minimum(jnp.ceil(window), length).astype(jnp.int32)
    pairs = jnp.minimum(position[:, None] + 1, keys[:, None])
    return jnp.where(segment_ids[:, None] > 0, pairs, 0)


def _sum_blocks(x: Int[Array, "B H T"]) -> Int[Array, "B H N"]:
    """Sums of stretches of queries, each of which fits int32 at any length that fits a device."""
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % _SUMMED)))
    return jnp.sum(padded.reshape(*x.shape[:2], -1, _SUMMED), axis=3, dtype=jnp.int32)
