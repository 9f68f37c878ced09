"""Text generation for any model with a cache: batched, ragged, streaming."""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from multiscreen_jax.cache import last_real
from multiscreen_jax.fields import is_integer, is_number
from multiscreen_jax.models.fit import check_model, check_params
from multiscreen_jax.sampling import sample

# Tokens of each row taken in at a time. Longer prompts loop; the rest is padded to a power of two,
# so that prompts of any length compile a handful of programs.
PREFILL_CHUNK = 512
_SMALLEST_CHUNK = 16


def generate(
    model: nn.Module,
    params: Any,
    prompt_tokens: Any,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    key: Array | None = None,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    vocab_limit: int | None = None,
    max_length: int | None = None,
    cache_dtype: Any = None,
) -> np.ndarray:
    """Continue one prompt or a batch of prompts; returns the new tokens only.

    Prompts of different lengths share a batch: each row gives what it gives alone (up to the
    rounding of batched products). Row b draws with `jax.random.fold_in(key, b)`, and step t of a
    row with `fold_in(row key, t)`: a row's sample depends on its number and not on its neighbours.

    Args:
        model, params: any model of this library.
        prompt_tokens: one prompt (a 1-D array or a list of ids), or a batch (a 2-D array or a list
            of prompts of any lengths). At least one token each.
        max_new_tokens: stop after this many.
        temperature: 0 takes the most likely token; above, logits are divided by it and sampled.
        key: `jax.random.key(seed)`, needed when temperature > 0. An array of B keys is taken as
            the row keys themselves.
        top_k: sample among the k most likely tokens only.
        top_p: and among the smallest set of them whose probability reaches this. Both act after
            the temperature, in this order, and not at all when temperature is 0.
        stop_tokens: ids that end a row. The id itself is part of the result, and fills what other
            rows add after it.
        vocab_limit: only ids below it are made; for a model with more tokens than its tokenizer.
        max_length: most tokens, prompt included, that a row may have; None allows what is needed.
        cache_dtype: of the cache; None is the model's dtype.

    Returns:
        int32 [N] for one prompt, [B, N] for a batch. N is max_new_tokens, or fewer if every row met
        a stop token before.

    Raises:
        ValueError: bad prompt or settings, before anything runs. FloatingPointError: NaN logits.
    """
    settings = _settings(
        model, temperature, key, top_k, top_p, stop_tokens, vocab_limit, max_new_tokens
    )
    prompts, batched = _prompts(prompt_tokens, model.config.vocab_size)
    steps = _steps(model, params, prompts, max_new_tokens, settings, max_length, cache_dtype)
    tokens = np.stack(list(steps), axis=1)
    return tokens if batched else tokens[0]


def stream(
    model: nn.Module,
    params: Any,
    prompt_tokens: Any,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    key: Array | None = None,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    vocab_limit: int | None = None,
    max_length: int | None = None,
    cache_dtype: Any = None,
) -> Iterator[np.ndarray]:
    """The same as `generate`, step by step: yields int32 [B] per step ([1] for one prompt).

    Arguments are checked at the call, not at the first step.
    """
    settings = _settings(
        model, temperature, key, top_k, top_p, stop_tokens, vocab_limit, max_new_tokens
    )
    prompts, _ = _prompts(prompt_tokens, model.config.vocab_size)
    return _steps(model, params, prompts, max_new_tokens, settings, max_length, cache_dtype)


class _Settings(NamedTuple):
    temperature: float
    key: Array | None
    top_k: int | None
    top_p: float | None
    stop_tokens: tuple[int, ...]
    vocab_limit: int | None


def _steps(model, params, prompts, max_new_tokens, settings, max_length, cache_dtype):
    batch, longest = len(prompts), max(map(len, prompts))
    needed = longest + max_new_tokens
    if max_length is not None and not is_integer(max_length):
        raise ValueError(f"max_length must be None or an integer, got {max_length!r}")
    if max_length is not None and needed > max_length:
        raise ValueError(
            f"the longest prompt has {longest} tokens and max_new_tokens is {max_new_tokens}: "
            f"together more than max_length = {max_length}"
        )
    limit = model.document_limit
    if limit is not None and needed - 1 > limit[0]:  # the last new token is not read
        raise ValueError(
            f"the longest prompt has {longest} tokens and max_new_tokens is {max_new_tokens}, but "
            f"{limit[1]}"
        )
    keys = _row_keys(settings.key, batch)
    check_params(model, params)

    def run() -> Iterator[np.ndarray]:
        cache = model.init_cache(params, batch, _capacity(needed), cache_dtype)
        hidden, cache = _prefill(model, params, prompts, cache)
        chosen = _choose(model, params, hidden, keys, 0, None, settings)
        for step in range(1, max_new_tokens + 1):
            current = chosen
            if step < max_new_tokens:  # under way while the caller looks at this step's tokens
                hidden, cache = _advance(model, params, current.tokens[:, None], None, cache)
                chosen = _choose(model, params, hidden[:, 0], keys, step, current, settings)
            tokens, done, bad = jax.device_get(current)
            if bad.any():
                raise FloatingPointError(
                    f"NaN among the logits of row {int(bad.argmax())} at new token {step - 1}: "
                    "are the parameters finite?"
                )
            yield tokens
            if done.all():
                return

    return run()


class _Chosen(NamedTuple):
    tokens: Int[Array, " B"]
    done: Array  # [B] bool: the row has met a stop token
    bad: Array  # [B] bool: its logits held NaN


def _choose(model, params, hidden, keys, step, previous, settings) -> _Chosen:
    previous = previous or _Chosen(*(np.zeros(len(hidden), t) for t in (np.int32, bool, bool)))
    stop = np.asarray(settings.stop_tokens, np.int32)
    greedy = settings.temperature == 0
    return _choose_jit(
        model, None if greedy else settings.top_k, greedy, params, hidden, keys, step, previous,
        stop, settings.temperature, None if greedy else settings.top_p, settings.vocab_limit,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _choose_jit(
    model,
    top_k,
    greedy,
    params,
    hidden,
    keys,
    step,
    previous,
    stop,
    temperature,
    top_p,
    vocab_limit,
):
    table = model.apply({"params": params}, method="output_rows")
    logits = jnp.einsum(
        "bd,od->bo",
        hidden,
        table,
        precision=model.config.precision,
        preferred_element_type=jnp.promote_types(hidden.dtype, jnp.float32),
    )
    bad = jnp.any(jnp.isnan(logits), axis=-1)
    if vocab_limit is not None:
        logits = jnp.where(jnp.arange(logits.shape[-1]) < vocab_limit, logits, -jnp.inf)
    if greedy:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        tokens = sample(logits, step_keys, temperature, top_k, top_p)
    tokens = jnp.where(previous.done, previous.tokens, tokens)
    done = previous.done | jnp.any(tokens[:, None] == stop[None, :], axis=1)
    return _Chosen(tokens, done, bad)


@functools.partial(jax.jit, static_argnums=0, donate_argnames="cache")
def _advance(model, params, tokens, segment_ids, cache):
    return model.apply({"params": params}, tokens, segment_ids, cache, method="trunk")


@functools.partial(jax.jit, static_argnums=0, donate_argnames=("cache", "last"))
def _prefill_chunk(model, params, tokens, segment_ids, cache, last):
    hidden, cache = model.apply({"params": params}, tokens, segment_ids, cache, method="trunk")
    newest = jnp.take_along_axis(
        hidden, last_real(segment_ids, *tokens.shape)[:, None, None], axis=1
    )[:, 0]
    real = segment_ids[:, :1] != 0
    return jnp.where(real, newest, last if last is not None else 0), cache


def _prefill(model, params, prompts, cache):
    """(trunk output [B, D] at each prompt's last token, the filled cache)."""
    model = model.for_one_document()
    longest = max(map(len, prompts))
    last, at = None, 0
    while at < longest:
        size = min(PREFILL_CHUNK, _power_of_two(longest - at, _SMALLEST_CHUNK))
        tokens = np.zeros((len(prompts), size), np.int32)
        real = np.zeros((len(prompts), size), np.int32)
        for row, prompt in enumerate(prompts):
            part = prompt[at : at + size]
            tokens[row, : len(part)], real[row, : len(part)] = part, 1
        last, cache = _prefill_chunk(model, params, tokens, real, cache, last)
        at += size
    return last, cache


def _capacity(needed: int) -> int:
    """Cache length: few different ones, so that few programs are compiled."""
    return _power_of_two(needed, 64) if needed <= 1024 else 1024 * math.ceil(needed / 1024)


def _power_of_two(n: int, at_least: int) -> int:
    return max(at_least, 1 << (n - 1).bit_length())


def _row_keys(key: Array | None, batch: int) -> Key[Array, " B"]:
    if key is None:
        return jax.random.split(jax.random.key(0), batch)  # greedy: never read
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (
        jnp.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == np.uint32 and key.ndim)
    ):
        raise ValueError(f"key must be made by jax.random.key(seed), got {key!r}")
    if not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"key must be one key or one for each of {batch} rows, got {key.shape}")
    return key


def _settings(
    model, temperature, key, top_k, top_p, stop_tokens, vocab_limit, max_new_tokens
) -> _Settings:
    check_model(model)
    if not is_integer(max_new_tokens) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be an integer >= 1, got {max_new_tokens!r}")
    if not is_number(temperature) or not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a finite number >= 0, got {temperature!r}")
    if temperature > 0 and key is None:
        raise ValueError(
            f"temperature {temperature} samples at random and needs a key: pass "
            "key=jax.random.key(seed), or temperature=0"
        )
    if top_k is not None and (not is_integer(top_k) or top_k < 1):
        raise ValueError(f"top_k must be None or an integer >= 1, got {top_k!r}")
    if top_p is not None and not (is_number(top_p) and 0 < top_p <= 1):
        raise ValueError(f"top_p must be None or in (0, 1], got {top_p!r}")
    stops = np.asarray(stop_tokens)
    if stops.ndim != 1 or not (stops.size == 0 or np.issubdtype(stops.dtype, np.integer)):
        raise ValueError(f"stop_tokens must be a sequence of integer ids, got {stop_tokens!r}")
    size = model.config.vocab_size
    if stops.size and not 0 <= stops.min() <= stops.max() < size:
        raise ValueError(f"stop_tokens must be in [0, {size}), got {stop_tokens!r}")
    if vocab_limit is not None and not (is_integer(vocab_limit) and 1 <= vocab_limit <= size):
        raise ValueError(f"vocab_limit must be None or in [1, {size}], got {vocab_limit!r}")
    return _Settings(temperature, key, top_k, top_p, tuple(stops.tolist()), vocab_limit)


def _is_row(given: Any) -> bool:
    return given.ndim > 0 if hasattr(given, "ndim") else isinstance(given, Iterable)


def _prompts(prompt_tokens: Any, vocab_size: int) -> tuple[list[np.ndarray], bool]:
    """(one id array per row, whether a batch was given)."""
    if not hasattr(prompt_tokens, "ndim"):
        if not isinstance(prompt_tokens, Iterable):
            raise ValueError(
                "prompt_tokens must be token ids, or a batch of such rows, got "
                f"{type(prompt_tokens).__name__}"
            )
        prompt_tokens = list(prompt_tokens)
        batched = any(map(_is_row, prompt_tokens))
    elif prompt_tokens.ndim in (1, 2):
        batched = prompt_tokens.ndim == 2
    else:
        raise ValueError(
            "prompt_tokens must be one prompt (1-D) or a batch of them (2-D), got shape "
            f"{prompt_tokens.shape}"
        )
    try:
        rows = [np.asarray(row) for row in (prompt_tokens if batched else [prompt_tokens])]
    except ValueError:
        raise ValueError("prompt_tokens must be token ids, or a batch of rows of them") from None
    if not rows:
        raise ValueError("prompt_tokens holds no prompt")
    for number, row in enumerate(rows):
        where = f"prompt {number}" if batched else "the prompt"
        if row.size == 0:
            raise ValueError(f"{where} is empty; generation starts from at least one token")
        if row.ndim != 1 or not np.issubdtype(row.dtype, np.integer):
            raise ValueError(f"{where} must be a row of integer ids, got {row.dtype} {row.shape}")
        bad = (row < 0) | (row >= vocab_size)
        if bad.any():
            raise ValueError(
                f"token ids must be in [0, {vocab_size}), got {row[bad.argmax()]} at position "
                f"{bad.argmax()} of {where}"
            )
    return [row.astype(np.int32) for row in rows], batched
