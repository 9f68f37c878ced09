"""Next-token cross-entropy that never holds the logits of a whole batch.

The output projection and the cross-entropy run together over chunks of tokens. The gradient is
made in the same pass as the value: a chunk's logits are multiplied once for the loss and twice
for its gradients, then dropped, so that nothing of size B x T x O is ever stored or recomputed.

Lookups of the target's logit and of its gradient are comparisons with an iota, which fuse into
the softmax, and not gathers and scatters, which on CPUs cost more than the projection itself
when the vocabulary is small.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from multiscreen_jax.layers.embedding import check_segments, check_tokens, wide_ids
from multiscreen_jax.sharding import activation_parts, flat_tokens, shard_activations

# Logits that a device holds at a time: 64 MB in float32. Small enough to vanish beside the
# parameters of a model whose vocabulary needs chunks at all, large enough for a matrix unit to be
# busy.
LOGIT_BUDGET = 2**24

Batch = dict[str, Array]


def chunk_length(batch: int, length: int, vocabulary: int, budget: int = LOGIT_BUDGET) -> int:
    """Tokens of each row, or of each share of it, projected at a time.

    So that a device's rows x chunk x vocabulary <= budget. Chunks are even: 10 tokens in chunks of
    at most 8 go as 5 and 5. At least one token.
    """
    rows, tokens = (
        size // parts
        for size, parts in zip((batch, length), activation_parts(batch, length), strict=True)
    )
    longest = max(1, budget // (rows * vocabulary))
    chunks = -(-tokens // longest)
    return -(-tokens // chunks)


def cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "O D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    chunk: int | None = None,
    precision: Any = None,
) -> Float[Array, ""]:
    """Sum over tokens of weight times -log softmax(table @ hidden)[target], in nats.

    Logits, losses and the sum are in promote_types(hidden.dtype, float32). Gradients exist for
    `hidden` and `table` (accumulated in the same type); targets and weights have none.
    `chunk` is the number of tokens of each row projected at a time (default: `chunk_length`); of
    each device's share of a row where a mesh divides them.
    Cost: 2 B T O D multiply-adds times one for the value alone, times three with gradients.
    """
    if chunk is None:
        batch, length = targets.shape
        chunk = chunk_length(batch, length, table.shape[0])
    return _cross_entropy(chunk, precision, hidden, table, targets, weights)


def token_cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "O D"],
    targets: Int[Array, "B T"],
    chunk: int | None = None,
    precision: Any = None,
) -> Float[Array, "B T"]:
    """-log softmax(table @ hidden)[target] of every token, in nats; the same chunks, no weights.

    Meant for evaluation. Differentiating it stores each chunk's logits: use `cross_entropy`.
    """
    return _scan_logits(_nats, hidden, table, targets, chunk, precision)


def token_hits(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "O D"],
    targets: Int[Array, "B T"],
    chunk: int | None = None,
    precision: Any = None,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """(`token_cross_entropy`, whether the target's logit alone is the largest) of every token.

    A tie is no hit, so that equal logits everywhere are right nowhere. For evaluation.
    """
    return _scan_logits(_nats_and_hits, hidden, table, targets, chunk, precision)


def _nats(logits: Array, chosen: Array) -> Array:
    return jax.nn.logsumexp(logits, axis=-1) - _pick(logits, chosen)


def _nats_and_hits(logits: Array, chosen: Array) -> tuple[Array, Array]:
    not_below = logits >= _pick(logits, chosen)[..., None]
    return _nats(logits, chosen), jnp.sum(not_below, axis=-1, dtype=jnp.int32) == 1


def _scan_logits(
    measure: Callable[[Array, Array], Any],
    hidden: Array,
    table: Array,
    targets: Array,
    chunk: int | None,
    precision: Any,
) -> Any:
    """measure(logits [B,C,O], is target [B,C,O]) -> arrays [B,C], of every chunk: arrays [B,T]."""
    batch, length = targets.shape
    if chunk is None:
        chunk = chunk_length(batch, length, table.shape[0])
    parts = (_split(hidden, chunk), _split(targets, chunk))

    def step(carry: None, part: tuple[Array, Array]) -> tuple[None, Any]:
        hidden_bcd, targets_bc = part
        logits_bco = jnp.einsum(
            "bcd,od->bco",
            hidden_bcd,
            table,
            precision=precision,
            preferred_element_type=jnp.promote_types(hidden.dtype, jnp.float32),
        )
        return carry, measure(logits_bco, _is_target(targets_bc, table.shape[0]))

    _, measured = jax.lax.scan(step, None, parts)
    return jax.tree.map(lambda x_ibc: _joined(x_ibc, length), measured)


def targets_and_weights(
    batch: Batch, dtype: Any = jnp.float32
) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
    """What is predicted and how much each prediction counts.

    The target of a position is the next token, or what `targets` (if given) has there. It counts
    when `loss_mask` (if given) is non-zero there and (if `segment_ids` are given) when the next
    token lies in the same document as the one before it: the first token of a document cannot be
    known from another one, and padding (segment 0) is never scored.
    """
    tokens = batch["tokens"]
    if tokens.ndim != 2 or tokens.shape[1] < 2:
        raise ValueError(
            f"batch['tokens'] must be [batch, length + 1] with length >= 1, got {tokens.shape}"
        )
    targets = tokens[:, 1:]
    if batch.get("targets") is not None:
        if batch["targets"].shape != targets.shape:
            raise ValueError(
                f"batch['targets'] must be one shorter than the tokens, {targets.shape}, "
                f"got {batch['targets'].shape}"
            )
        targets = batch["targets"]
    weights = jnp.ones(targets.shape, dtype)
    if batch.get("segment_ids") is not None:
        segments = batch["segment_ids"]
        check_segments(segments, tokens.shape)
        same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        weights = weights * same
    if batch.get("loss_mask") is not None:
        mask = batch["loss_mask"]
        if mask.shape != targets.shape:
            raise ValueError(
                f"batch['loss_mask'] must have the shape of the targets, {targets.shape}, "
                f"got {mask.shape}"
            )
        weights = weights * mask
    return targets, weights


def loss_sum(model: nn.Module, params: Any, batch: Batch) -> tuple[Array, Array]:
    """(weighted sum of the losses in nats, sum of the weights) of a batch, differentiable.

    Dividing the first by the second gives `next_token`; parts of a batch can be added up first.
    """
    hidden, table, targets, weights = _forward(model, params, batch)
    return cross_entropy(hidden, table, targets, weights, precision=_precision(model)), (
        jnp.sum(weights)
    )


def next_token(model: nn.Module, params: Any, batch: Batch) -> Float[Array, ""]:
    """Mean next-token cross-entropy in nats over the targets that count.

    Args:
      model: any of this library's models; only `trunk` and `unembedding` are used.
      params: its parameters.
      batch: `tokens` int32 [B, T+1], optional `segment_ids` int32 [B, T+1] (documents from 1,
        0 is padding), optional `loss_mask` [B, T] (weights of the targets), optional `targets`
        int32 [B, T] where the answer is not the next token of the text (associative recall).
    Returns:
      A scalar in promote_types(dtype, float32); 0 when nothing counts.
    """
    total, weight = loss_sum(model, params, batch)
    return total / jnp.maximum(weight, jnp.finfo(weight.dtype).tiny)


def token_losses(
    model: nn.Module, params: Any, batch: Batch
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """(losses, weights): the loss of every target in nats, and whether it counts.

    Losses of targets that do not count are computed all the same. Arguments as `next_token`.
    """
    hidden, table, targets, weights = _forward(model, params, batch)
    return token_cross_entropy(hidden, table, targets, precision=_precision(model)), weights


def token_scores(
    model: nn.Module, params: Any, batch: Batch
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"], Float[Array, "B T"]]:
    """(losses, hits, weights): as `token_losses`, and whether each target was the best guess."""
    hidden, table, targets, weights = _forward(model, params, batch)
    nats, hits = token_hits(hidden, table, targets, precision=_precision(model))
    return nats, hits, weights


def _forward(model: nn.Module, params: Any, batch: Batch) -> tuple[Array, Array, Array, Array]:
    if "tokens" not in batch:
        raise ValueError(f"a batch needs tokens [B, T+1], got {', '.join(batch) or 'nothing'}")
    segments = batch.get("segment_ids")
    check_tokens(batch["tokens"], model.config.vocab_size)  # pyright: ignore[reportAttributeAccessIssue]
    check_segments(segments, batch["tokens"].shape)
    batch = {**batch, "tokens": wide_ids(batch["tokens"])}
    variables = {"params": params}
    hidden, _ = model.apply(  # pyright: ignore[reportGeneralTypeIssues]
        variables,
        batch["tokens"][:, :-1],
        segment_ids=None if segments is None else segments[:, :-1],
        method="trunk",
    )
    hidden = shard_activations(hidden)
    table = model.apply(variables, method="unembedding")
    targets, weights = targets_and_weights(batch, jnp.promote_types(hidden.dtype, jnp.float32))
    # Inside jit a bad id cannot raise: its loss is NaN instead of that of no token at all.
    known = (targets >= 0) & (targets < table.shape[0])
    weights = jnp.where(known | (weights == 0), weights, jnp.nan)
    return hidden, table, targets, weights  # pyright: ignore[reportReturnType]


def _precision(model: nn.Module) -> Any:
    return getattr(model.config, "precision", None)  # pyright: ignore[reportAttributeAccessIssue]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_entropy(
    chunk: int, precision: Any, hidden: Array, table: Array, targets: Array, weights: Array
) -> Array:
    losses = token_cross_entropy(hidden, table, targets, chunk, precision)
    return jnp.sum(losses * weights)


def _cross_entropy_forward(
    chunk: int, precision: Any, hidden: Array, table: Array, targets: Array, weights: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    accumulator = jnp.promote_types(hidden.dtype, jnp.float32)
    length = hidden.shape[1]
    parts = (_split(hidden, chunk), _split(targets, chunk), _split(weights, chunk))
    product = functools.partial(jnp.einsum, precision=precision, preferred_element_type=accumulator)

    def step(
        carry: tuple[Array, Array], part: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        total, table_gradient = carry
        # Rows of one matrix, n standing for both axes: products over two are slower on CPUs.
        hidden_nd, targets_n, weights_n = (flat_tokens(x) for x in part)
        logits_no = product("...d,od->...o", hidden_nd, table)
        chosen_no = _is_target(targets_n, table.shape[0])
        largest_n = jnp.max(logits_no, axis=-1)
        exponential_no = jnp.exp(logits_no - largest_n[..., None])
        sum_n = jnp.sum(exponential_no, axis=-1)
        losses_n = jnp.log(sum_n) + largest_n - _pick(logits_no, chosen_no)
        total += jnp.sum(losses_n * weights_n)
        slope_no = exponential_no * (weights_n / sum_n)[..., None]
        slope_no = slope_no - jnp.where(chosen_no, weights_n[..., None], 0)
        # The matrix units take the compute dtype; sums stay in the accumulator's.
        slope_no = slope_no.astype(hidden.dtype)
        hidden_gradient = product("...o,od->...d", slope_no, table).astype(hidden.dtype)
        n = "n" if slope_no.ndim == 2 else "bn"
        table_gradient += product(f"{n}o,{n}d->od", slope_no, hidden_nd)
        return (total, table_gradient), hidden_gradient.reshape(part[0].shape)

    start = (jnp.zeros((), accumulator), jnp.zeros(table.shape, accumulator))
    (total, table_gradient), gradients_ibcd = jax.lax.scan(step, start, parts)
    hidden_gradient = _joined(gradients_ibcd, length)
    # An empty array carries the table's dtype, which may differ from the accumulator's.
    return total, (hidden_gradient, table_gradient, jnp.zeros((0,), table.dtype))


def _cross_entropy_backward(
    chunk: int, precision: Any, residuals: tuple[Array, Array, Array], gradient: Array
) -> tuple[Array, Array, None, None]:
    hidden_gradient, table_gradient, table_like = residuals
    return (
        (hidden_gradient * gradient).astype(hidden_gradient.dtype),
        (table_gradient * gradient).astype(table_like.dtype),
        None,
        None,
    )


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _split(x: Array, chunk: int) -> Array:
    """[B, T, ...] -> [chunks, B, n chunk, ...], padded with zeros: zero weights, so no loss.

    Where n devices have shares of the sequence, a chunk has tokens of all of them, so that each
    works on its own.
    """
    batch, length = x.shape[:2]
    parts = activation_parts(batch, length)[1]
    share = length // parts
    chunks = -(-share // chunk)
    x = x.reshape(batch, parts, share, *x.shape[2:])
    x = jnp.pad(x, [(0, 0), (0, 0), (0, chunks * chunk - share)] + [(0, 0)] * (x.ndim - 3))
    x = jnp.moveaxis(x.reshape(batch, parts, chunks, chunk, *x.shape[3:]), 2, 0)
    return x.reshape(chunks, batch, parts * chunk, *x.shape[4:])


def _joined(x: Array, length: int) -> Array:
    """The inverse of `_split`: [chunks, B, n chunk, ...] -> [B, T, ...]."""
    chunks, batch = x.shape[:2]
    parts = activation_parts(batch, length)[1]
    x = jnp.moveaxis(x.reshape(chunks, batch, parts, -1, *x.shape[3:]), 0, 2)
    x = x.reshape(batch, parts, -1, *x.shape[4:])[:, :, : length // parts]
    return x.reshape(batch, length, *x.shape[3:])


def _is_target(targets: Array, vocabulary: int) -> Array:
    return wide_ids(targets)[..., None] == jnp.arange(vocabulary, dtype=jnp.int32)


def _pick(logits: Array, chosen: Array) -> Array:
    return jnp.sum(jnp.where(chosen, logits, 0), axis=-1)
