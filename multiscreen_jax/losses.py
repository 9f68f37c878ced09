"""Next-token cross-entropy that never holds the logits of a whole batch.

The output projection and the cross-entropy run together over chunks of tokens. The gradient is
made in the same pass as the value: a chunk's logits are multiplied once for the loss and twice
for its gradients, then dropped, so that nothing of size B x T x O is ever stored or recomputed.

Lookups of the target's logit and of its gradient are comparisons with an iota, which fuse into
the softmax, and not gathers and scatters, which on CPUs cost more than the projection itself
when the vocabulary is small.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from multiscreen_jax.layers.embedding import (
    check_segments,
    check_targets,
    check_tokens,
    refuse_unknown_targets,
    wide_ids,
)
from multiscreen_jax.layers.logits import logits_of, soft_cap_slope
from multiscreen_jax.layers.sown import apply_and_collect
from multiscreen_jax.models.fit import check_model, check_tree
from multiscreen_jax.sharding import activation_axes, even_rows, shard_activations

# Logits that a device holds at a time: 64 MB in float32. Small enough to vanish beside the
# parameters of a model whose vocabulary needs chunks at all, large enough for a matrix unit to be
# busy.
LOGIT_BUDGET = 2**24

Batch = dict[str, Array]


class _How(NamedTuple):
    """Static settings of a projection: see `cross_entropy`; rows past `vocabulary` do not count."""

    chunk: int | None
    precision: Any
    vocabulary: int
    cap: float | None


def chunk_length(batch: int, length: int, vocabulary: int, budget: int = LOGIT_BUDGET) -> int:
    """Tokens of each row projected at a time, so that batch x chunk x vocabulary <= budget.

    Chunks are even: 10 tokens in chunks of at most 8 go as 5 and 5. At least one token.
    """
    longest = max(1, budget // (batch * vocabulary))
    chunks = -(-length // longest)
    return -(-length // chunks)


def cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "O D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    chunk: int | None = None,
    precision: Any = None,
    cap: float | None = None,
) -> Float[Array, ""]:
    """Sum over tokens of weight times -log softmax(cap(table @ hidden))[target], in nats.

    Logits, losses and the sum are in promote_types(hidden.dtype, float32). Gradients exist for
    `hidden` and `table` (accumulated in the same type); targets and weights have none.
    `chunk` is the number of tokens of each row projected at a time (default: `chunk_length`); `cap`
    is that of `layers.logits.soft_cap`.
    Cost: 2 B T O D multiply-adds times one for the value alone, times three with gradients. Under a
    mesh every device takes its own rows and tokens, with the table whole on each for the time of
    the call.
    """

    def total(*arrays: Array) -> Float[Array, "1 1"]:
        size = chunk or chunk_length(*arrays[2].shape, table.shape[0])
        return _cross_entropy(_How(size, precision, table.shape[0], cap), *arrays)[None, None]

    return jnp.sum(_on_own_tokens(total, hidden, table, targets, weights))


def _on_own_tokens(
    function: Callable[..., Any], hidden: Array, table: Array, targets: Array, *weights: Array
) -> Any:
    """function(...) -> arrays [B, T], of every device's own rows and tokens.

    By hand: XLA would gather the table, and add up its gradient over all devices, chunk by chunk.
    The table may get rows of zeros at its end, whose logits do not count.
    """
    table = even_rows(table)
    rows, tokens = activation_axes(*targets.shape)
    if not rows + tokens:
        return function(hidden, table, targets, *weights)
    own = PartitionSpec(rows, tokens)
    return jax.shard_map(
        function,
        in_specs=(own, PartitionSpec(), own, *[own] * len(weights)),
        out_specs=own,
        axis_names={*rows, *tokens},
        check_vma=False,
    )(hidden, table, targets, *weights)


def token_cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "O D"],
    targets: Int[Array, "B T"],
    chunk: int | None = None,
    precision: Any = None,
    cap: float | None = None,
) -> Float[Array, "B T"]:
    """-log softmax(table @ hidden)[target] of every token, in nats; the same chunks, no weights.

    Meant for evaluation. Differentiating it stores each chunk's logits: use `cross_entropy`.
    """
    scan = functools.partial(_scan_logits, _nats, _How(chunk, precision, table.shape[0], cap))
    return _on_own_tokens(scan, hidden, table, targets)


def token_hits(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "O D"],
    targets: Int[Array, "B T"],
    chunk: int | None = None,
    precision: Any = None,
    cap: float | None = None,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """(`token_cross_entropy`, whether the target's logit alone is the largest) of every token.

    A tie is no hit, so that equal logits everywhere are right nowhere. For evaluation.
    """
    how = _How(chunk, precision, table.shape[0], cap)
    scan = functools.partial(_scan_logits, _nats_and_hits, how)
    return _on_own_tokens(scan, hidden, table, targets)


def _nats(logits: Array, chosen: Array) -> Array:
    return jax.nn.logsumexp(logits, axis=-1) - _pick(logits, chosen)


def _nats_and_hits(logits: Array, chosen: Array) -> tuple[Array, Array]:
    not_below = logits >= _pick(logits, chosen)[..., None]
    return _nats(logits, chosen), jnp.sum(not_below, axis=-1, dtype=jnp.int32) == 1


def _scan_logits(
    measure: Callable[[Array, Array], Any],
    how: _How,
    hidden: Array,
    table: Array,
    targets: Array,
) -> Any:
    """measure(logits [B,C,O], is target [B,C,O]) -> arrays [B,C], of every chunk: arrays [B,T]."""
    batch, length = targets.shape
    chunk = how.chunk or chunk_length(batch, length, how.vocabulary)
    parts = (_split(hidden, chunk), _split(targets, chunk))

    def step(carry: None, part: tuple[Array, Array]) -> tuple[None, Any]:
        hidden_bcd, targets_bc = part
        capped_bco = logits_of(hidden_bcd, table, how.cap, how.precision)
        logits_bco = _of_tokens(capped_bco, how.vocabulary)
        return carry, measure(logits_bco, _is_target(targets_bc, table.shape[0]))

    _, measured = jax.lax.scan(step, None, parts)
    return jax.tree.map(
        lambda x_ibc: jnp.moveaxis(x_ibc, 0, 1).reshape(batch, -1)[:, :length], measured
    )


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
    check_targets(batch, targets.shape)
    if batch.get("targets") is not None:
        targets = batch["targets"]
    weights = jnp.ones(targets.shape, dtype)
    if batch.get("segment_ids") is not None:
        segments = batch["segment_ids"]
        check_segments(segments, tokens.shape)
        same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        weights = weights * same
    if batch.get("loss_mask") is not None:
        mask = jnp.asarray(batch["loss_mask"]).astype(dtype)
        # Where a value cannot be seen, a wrong one makes the loss NaN and not some number.
        weights = weights * jnp.where((mask >= 0) & (mask < jnp.inf), mask, jnp.nan)
    return targets, weights


def collected_sum(
    model: nn.Module, params: Any, batch: Batch, key: Key[Array, ""] | None = None
) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """(weighted sum of the losses in nats, losses that modules sowed, metrics) of a batch.

    For training: `key` drives what is random in the model, see `layers.sown` for the dicts.
    """
    hidden, table, targets, weights, *sown = _forward(model, params, batch, key, collect=True)
    total = cross_entropy(hidden, table, targets, weights, **_how(model))
    return total, *sown


def next_token(model: nn.Module, params: Any, batch: Batch) -> Float[Array, ""]:
    """Mean next-token cross-entropy in nats over the targets that count.

    Args:
      model: any of this library's models; only `trunk` and `output_rows` are used.
      params: its parameters.
      batch: `tokens` int32 [B, T+1], optional `segment_ids` int32 [B, T+1] (documents from 1,
        0 is padding), optional `loss_mask` [B, T] (weights of the targets, finite and >= 0: others
        are refused outside jit and make the loss NaN inside it), optional `targets`
        int32 [B, T] where the answer is not the next token of the text (associative recall).
    Returns:
      A scalar in promote_types(dtype, float32); 0 when nothing counts.
    """
    hidden, table, targets, weights = _forward(model, params, batch)
    total = cross_entropy(hidden, table, targets, weights, **_how(model))
    return total / jnp.maximum(jnp.sum(weights), jnp.finfo(weights.dtype).tiny)


def token_losses(
    model: nn.Module, params: Any, batch: Batch
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """(losses, weights): the loss of every target in nats, and whether it counts.

    Losses of targets that do not count are computed all the same. Arguments as `next_token`.
    """
    hidden, table, targets, weights = _forward(model, params, batch)
    return token_cross_entropy(hidden, table, targets, **_how(model)), weights


def token_scores(
    model: nn.Module, params: Any, batch: Batch
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"], Float[Array, "B T"]]:
    """(losses, hits, weights): as `token_losses`, and whether each target was the best guess."""
    hidden, table, targets, weights = _forward(model, params, batch)
    nats, hits = token_hits(hidden, table, targets, **_how(model))
    return nats, hits, weights


def _forward(
    model: nn.Module,
    params: Any,
    batch: Batch,
    key: Key[Array, ""] | None = None,
    collect: bool = False,
) -> tuple[Any, ...]:
    """(hidden, table, targets, weights), and with `collect` what modules sowed."""
    if not isinstance(batch, Mapping):
        kind = type(batch).__name__
        raise TypeError(f"a batch is a dict with tokens [B, T+1], got {kind}; {{'tokens': tokens}}")
    if "tokens" not in batch:
        raise ValueError(f"a batch needs tokens [B, T+1], got {', '.join(batch) or 'nothing'}")
    check_model(model)
    check_tree(params)
    segments = batch.get("segment_ids")
    check_tokens(batch["tokens"], model.config.vocab_size)  # pyright: ignore[reportAttributeAccessIssue]
    check_segments(segments, batch["tokens"].shape)
    rows, length = batch["tokens"].shape
    check_targets(batch, (rows, length - 1))  # before anything runs
    batch = {**batch, "tokens": wide_ids(batch["tokens"])}
    how = {
        "segment_ids": None if segments is None else segments[:, :-1],
        "method": "trunk",
        **({} if key is None else {"key": key}),
    }
    tokens, variables = batch["tokens"][:, :-1], {"params": params}
    if collect:
        (hidden, _), *sown = apply_and_collect(model, params, tokens, **how)
    else:
        (hidden, _), sown = model.apply(variables, tokens, **how), []
    hidden = shard_activations(hidden)
    table = model.apply(variables, method="output_rows")
    targets, weights = targets_and_weights(batch, jnp.promote_types(hidden.dtype, jnp.float32))
    # Inside jit a bad id cannot raise: its loss is NaN instead of that of no token at all.
    fine = (targets >= 0) & (targets < table.shape[0]) | (weights == 0)
    refuse_unknown_targets(targets, fine, table.shape[0])
    weights = jnp.where(fine, weights, jnp.nan)
    return hidden, table, targets, weights, *sown


def _how(model: nn.Module) -> dict[str, Any]:
    config: Any = model.config  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "precision": getattr(config, "precision", None),
        "cap": getattr(config, "logit_cap", None),
    }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(
    how: _How,
    hidden: Array,
    table: Array,
    targets: Array,
    weights: Array,
) -> Array:
    losses = _scan_logits(_nats, how, hidden, table, targets)
    return jnp.sum(losses * weights)


def _cross_entropy_forward(
    how: _How,
    hidden: Array,
    table: Array,
    targets: Array,
    weights: Array,
) -> tuple[Array, tuple[Array, Array, Array]]:
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    batch, length, width = hidden.shape
    parts = tuple(_split(x, how.chunk) for x in (hidden, targets, weights))
    product = functools.partial(jnp.einsum, precision=how.precision, preferred_element_type=wide)

    def step(
        carry: tuple[Array, Array], part: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        total, table_gradient = carry
        # Rows of one matrix: products over two batch axes are slower on CPUs.
        hidden_nd, targets_n, weights_n = (x.reshape(-1, *x.shape[2:]) for x in part)
        capped_no = logits_of(hidden_nd, table, how.cap, how.precision)
        logits_no = _of_tokens(capped_no, how.vocabulary)
        chosen_no = _is_target(targets_n, table.shape[0])
        largest_n = jnp.max(logits_no, axis=-1)
        exponential_no = jnp.exp(logits_no - largest_n[:, None])
        sum_n = jnp.sum(exponential_no, axis=-1)
        losses_n = jnp.log(sum_n) + largest_n - _pick(logits_no, chosen_no)
        total += jnp.sum(losses_n * weights_n)
        slope_no = exponential_no * (weights_n / sum_n)[:, None]
        slope_no = slope_no - jnp.where(chosen_no, weights_n[:, None], 0)
        if how.cap is not None:
            slope_no = slope_no * soft_cap_slope(capped_no, how.cap)
        # The matrix units take the compute dtype; sums stay in the wide's.
        slope_no = slope_no.astype(hidden.dtype)
        hidden_gradient = product("no,od->nd", slope_no, table).astype(hidden.dtype)
        table_gradient += product("no,nd->od", slope_no, hidden_nd)
        return (total, table_gradient), hidden_gradient.reshape(part[0].shape)

    start = (jnp.zeros((), wide), jnp.zeros(table.shape, wide))
    (total, table_gradient), gradients_ibcd = jax.lax.scan(step, start, parts)
    hidden_gradient = jnp.moveaxis(gradients_ibcd, 0, 1).reshape(batch, -1, width)[:, :length]
    # An empty array carries the table's dtype, which may differ from the wide's.
    return total, (hidden_gradient, table_gradient, jnp.zeros((0,), table.dtype))


def _cross_entropy_backward(
    how: _How,
    residuals: tuple[Array, Array, Array],
    gradient: Array,
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
    """[B, T, ...] -> [chunks, B, chunk, ...], padded with zeros: zero weights, so no loss."""
    batch, length = x.shape[:2]
    chunks = -(-length // chunk)
    padding = [(0, 0), (0, chunks * chunk - length)] + [(0, 0)] * (x.ndim - 2)
    return jnp.moveaxis(jnp.pad(x, padding).reshape(batch, chunks, chunk, *x.shape[2:]), 1, 0)


def _of_tokens(logits: Array, vocabulary: int) -> Array:
    """Without the logits of rows that only fill the table up: exp(-inf) is 0, and so its slope."""
    if logits.shape[-1] == vocabulary:
        return logits
    return jnp.where(jnp.arange(logits.shape[-1]) < vocabulary, logits, -jnp.inf)


def _is_target(targets: Array, vocabulary: int) -> Array:
    return wide_ids(targets)[..., None] == jnp.arange(vocabulary, dtype=jnp.int32)


def _pick(logits: Array, chosen: Array) -> Array:
    return jnp.sum(jnp.where(chosen, logits, 0), axis=-1)
