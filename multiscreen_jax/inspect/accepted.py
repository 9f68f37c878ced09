"""The accepted keys of every query and tile: which, and how strongly. For texts of any length."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from multiscreen_jax.inspect.blocks import fold_windows
from multiscreen_jax.inspect.relevance import keys_in_window
from multiscreen_jax.inspect.tiles import as_batch, check_model, scan_tiles
from multiscreen_jax.jitted import jitted
from pallas_kernels.screening.reference import softmask


@dataclasses.dataclass(frozen=True)
class AcceptedKeys:
    """The M strongest accepted keys of every query of one prompt, for every tile.

    Attributes:
        position: int32 [N, H, T, M], the keys' positions in the prompt, strongest first and of
            equals the nearest first; -1 where fewer than M are accepted.
        relevance: float32 [N, H, T, M], in (0, 1], 0 where fewer than M are accepted.
        accepted: int32 [N, H, T], how many keys are accepted in all, which may be more than M.
        total_relevance: float32 [N, H, T], sum of the relevance of all of them.
        reach: int32 [T], keys of the query's document up to the query itself; 0 for padding.
        window: [N, H], in tokens; may be infinite.
        width: [N, H], the acceptance width in (0, 1).
    """

    position: Int[np.ndarray, "N H T M"]
    relevance: Float[np.ndarray, "N H T M"]
    accepted: Int[np.ndarray, "N H T"]
    total_relevance: Float[np.ndarray, "N H T"]
    reach: Int[np.ndarray, " T"]
    window: Float[np.ndarray, "N H"]
    width: Float[np.ndarray, "N H"]

    def keys(self, layer: int, head: int, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions and relevance [m] of one query's kept keys, m = min(accepted, M)."""
        kept = self.relevance[layer, head, query] > 0
        return self.position[layer, head, query, kept], self.relevance[layer, head, query, kept]

    def in_window(self) -> Int[np.ndarray, "N H T"]:
        """Keys of each query's document inside the tile's window."""
        return np.minimum(self.reach, np.ceil(self.window)[..., None]).astype(np.int32)

    def share_accepted(self) -> Float[np.ndarray, "N H"]:
        """Accepted pairs over pairs inside the window; 0 where there are none."""
        pairs = self.in_window().sum(-1, dtype=np.int64)
        return self.accepted.sum(-1, dtype=np.int64) / np.maximum(pairs, 1)

    def share_rejected(self) -> float:
        """Share of the pairs inside the windows of all tiles that are rejected."""
        pairs = self.in_window().sum(dtype=np.int64)
        return float(1 - self.accepted.sum(dtype=np.int64) / max(pairs, 1))

    def silent(self) -> np.ndarray:
        """bool [N, H, T]: queries that accept no key at all, where the tile adds exactly nothing.

        Padding counts as silent.
        """
        return self.accepted == 0


def accepted_keys(
    model: Any, params: Any, tokens: Any, most: int = 16, segment_ids: Any = None
) -> AcceptedKeys:
    """The strongest accepted keys of every query of one prompt, of any length.

    Args:
        model, params: a Multiscreen and its parameters.
        tokens: integers [T] or [1, T].
        most: M >= 1, keys kept per tile and query; all are counted.
        segment_ids: documents of a packed row [T] or [1, T], from 1; 0 is padding.

    Raises:
        TypeError: another kind of model.
        ValueError: more than one prompt, or a `most` that is not an integer >= 1.

    Cost: the forward pass, and one product and one selection over the keys inside each window,
    block by block. The result takes N H T (8 M + 12) bytes; beside it memory is linear in T.
    """
    check_model(model, "accepted_keys")
    if isinstance(most, bool) or not isinstance(most, int | np.integer) or most < 1:
        raise ValueError(f"most must be an integer >= 1, got {most!r}")
    tokens, segment_ids = as_batch(model, tokens, segment_ids)
    if tokens.shape[0] != 1:
        raise ValueError(f"tokens must be one prompt, [T] or [1, T], got {tokens.shape}")
    find = jitted(_Finder(int(most)), model, params)
    return AcceptedKeys(**jax.device_get(find(params, tokens, segment_ids)))


@dataclasses.dataclass(frozen=True)
class _Finder:
    """A function of the model that `jitted` can keep: equal for equal `most`."""

    most: int

    def __call__(
        self, model: Any, params: Any, tokens: Array, segment_ids: Array | None
    ) -> dict[str, Array]:
        documents = jnp.ones(tokens.shape, jnp.int32) if segment_ids is None else segment_ids

        def read(sown: dict[str, Array]) -> dict[str, Array]:
            window, width = sown["window"], sown["width"]
            found = find_layer(sown["query"], sown["key"], window, width, documents, self.most)
            return {name: x[0] for name, x in found.items()} | {"window": window, "width": width}

        found = scan_tiles(model, params, tokens, segment_ids, read)
        return found | {"reach": keys_in_window(documents, jnp.full(1, jnp.inf))[0, 0]}


def find_layer(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    window: Float[Array, " H"],
    width: Float[Array, " H"],
    segments: Int[Array, "B T"],
    most: int,
) -> dict[str, Array]:
    """position, relevance [B, H, T, most]; accepted, total_relevance [B, H, T]."""
    dtype = jnp.result_type(q.dtype, jnp.float32)

    def start(batch: int, block: int) -> tuple[Array, ...]:
        kept = (batch, block, most)
        none = jnp.zeros(kept, dtype), jnp.zeros(kept, jnp.int32)
        return *none, jnp.zeros((batch, block), jnp.int32), jnp.zeros((batch, block), dtype)

    def add(
        carry: tuple[Array, ...], alpha: Array, distance: Array, window: Array
    ) -> tuple[Array, ...]:
        kept, kept_distance, accepted, total = carry
        relevance = jnp.where(alpha > 0, alpha * softmask(distance, window[None]), 0)
        accepted += jnp.sum(relevance > 0, axis=2, dtype=jnp.int32)
        total += jnp.sum(relevance, axis=2)
        # Of equals the first is taken: nearer blocks came before, and a block is turned round.
        candidates = jnp.concatenate([kept, relevance[..., ::-1]], axis=2)
        distances = jnp.broadcast_to(distance[None, :, ::-1], relevance.shape)
        distances = jnp.concatenate([kept_distance, distances], axis=2)
        kept, index = jax.lax.top_k(candidates, most)
        return kept, jnp.take_along_axis(distances, index, axis=2), accepted, total

    relevance, distance, accepted, total = fold_windows(q, k, window, width, segments, start, add)
    position = jnp.arange(q.shape[1], dtype=jnp.int32)[:, None] - distance
    return {
        "position": jnp.where(relevance > 0, position, -1),
        "relevance": relevance.astype(jnp.float32),
        "accepted": accepted,
        "total_relevance": total.astype(jnp.float32),
    }
