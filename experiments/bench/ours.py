"""Our models as contenders. Each function is a factory for `worker`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.inputs import cache_entries, read_shape
from multiscreen_jax import convert, losses
from multiscreen_jax.models import Multiscreen, MultiscreenConfig, create
from pallas_kernels import screening

Work = tuple[Callable[[], float], dict[str, Any]]
SOURCE = "multiscreen/paper"


def training_step(weights: str, remat: str = "none") -> Work:
    """Forward, cross-entropy and backward of all parameters; returns the loss."""
    params, config, tokens = _load(weights, remat=remat)
    model = Multiscreen(config)
    step = jax.jit(jax.value_and_grad(lambda p: losses.next_token(model, p, {"tokens": tokens})))
    return lambda: jax.block_until_ready(step(params))[0], {}


def projections(weights: str) -> Work:
    """The matrix products of a training step by weights and embedding, and the loss.

    The products of a layer are joined by additions, so that none of them can be left out.
    """
    params, config, tokens = _load(weights)
    tiles = params["layers"]["tiles"]
    rows = params["embedding"]["rows"]
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    heads = config.num_heads

    def layer(x, w):
        q, k, v, gate = (x @ w[name] for name in ("query", "key", "value", "gate"))
        rest = heads * (config.value_dim - config.key_dim)
        return x + (v + gate + jnp.pad(q + k, ((0, 0), (0, rest)))) @ w["output"], None

    def loss(weights, rows):
        x, _ = jax.lax.scan(layer, rows[inputs[0]], weights)
        weights = jnp.ones(targets.shape)
        return losses.cross_entropy(x[None], rows, targets, weights) / targets.size

    matrices = {
        name: tiles[name].reshape(config.num_layers, config.model_dim, -1)
        for name in ("query", "key", "value", "gate")
    }
    matrices["output"] = tiles["output"].reshape(config.num_layers, -1, config.model_dim)
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return lambda: jax.block_until_ready(step(matrices, rows))[0], {}


def screening_op(weights: str) -> Work:
    """The screening op of every layer, forward and backward, on random unit vectors."""
    params, config, tokens = _load(weights)
    tiles = params["layers"]["tiles"]
    window, width = jnp.exp(tiles["log_window"]) + 1, jax.nn.sigmoid(tiles["logit_width"])
    length = tokens.shape[1] - 1
    random = np.random.default_rng(0)
    q, k, v = (
        _unit(random.standard_normal((1, length, config.num_heads, dim), np.float32))
        for dim in (config.key_dim, config.key_dim, config.value_dim)
    )

    def total(q, k, v, window, width):
        def layer(x, w):
            return x + screening(q, k, v, *w).sum(), None

        return jax.lax.scan(layer, jnp.float32(0), (window, width))[0]

    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3, 4)))
    return lambda: jax.block_until_ready(step(q, k, v, window, width))[0], {}


def decode(weights: str, context: int, max_length: int, repeats: int = 1) -> Work:
    """One token after `context` cached ones, `repeats` times over; returns a logit."""
    params, config, tokens = _load(weights)
    model = Multiscreen(config)
    cache = filled_cache(model.init_cache(params, 1, max_length), context)
    (rings,) = cache.parts["layers"]
    bytes_held = sum(leaf.nbytes for leaf in (rings.keys, rings.values))
    token = tokens[:, :1]

    def next_logits(params, token, cache):
        out = model.apply({"params": params}, token, cache=cache)
        return out.logits[0, 0], out.cache

    step = jax.jit(next_logits, donate_argnames="cache")

    def work() -> float:
        nonlocal cache
        first = None
        for _ in range(repeats):
            logits, cache = step(params, token, cache)
            logits.block_until_ready()
            first = logits if first is None else first
        return first[0]

    return work, {"cache bytes": bytes_held}


def filled_cache(cache: Any, context: int) -> Any:
    """The cache as after `context` tokens, its rings full of random unit entries."""
    (rings,) = cache.parts["layers"]
    keys, values = np.array(rings.keys), np.array(rings.values)
    key_dim = keys.shape[-1]
    for (layer, tile), size in np.ndenumerate(np.asarray(rings.size)):
        held = min(int(size), context)
        entries = cache_entries(layer, tile, held, key_dim, values.shape[-1])
        slots = rings.offset[layer, tile] + (context - 1 - np.arange(held)) % size
        keys[0, slots], values[0, slots] = entries[:, :key_dim], entries[:, key_dim:]
    cursor = cache.cursor.replace(length=jnp.full_like(cache.cursor.length, context))
    rings = rings.replace(keys=jnp.asarray(keys), values=jnp.asarray(values))
    return cache.replace(parts={"layers": (rings,)}, cursor=cursor)


def long_forward(preset: str, vocab_size: int, length: int, infinite_tiles: float = 0.0) -> Work:
    """Trunk over `length` tokens and the logits of the last one; returns one of those.

    `infinite_tiles` is the share of a Multiscreen's tiles whose window is infinite: the widest
    tile of as many layers as that makes, then the next.
    """
    model, config = create(preset, vocab_size=vocab_size)
    tokens = np.random.default_rng(0).integers(0, vocab_size, (1, length))
    tokens = jnp.asarray(tokens, jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), tokens[:, :8])["params"]
    if infinite_tiles:
        tiles = params["layers"]["tiles"]
        log_window = np.array(tiles["log_window"])
        widest_first = log_window[:, ::-1].T  # [H, N], a view
        for index in range(round(infinite_tiles * log_window.size)):
            widest_first[np.unravel_index(index, widest_first.shape)] = np.inf
        tiles["log_window"] = jnp.asarray(log_window)

    def forward(params, tokens):
        hidden, _ = model.apply({"params": params}, tokens, method="trunk")
        return model.apply({"params": params}, method="output_rows") @ hidden[0, -1]

    compiled = jax.jit(forward).lower(params, tokens).compile()
    facts = {"parameters": config.parameter_count()}
    return lambda: jax.block_until_ready(compiled(params, tokens))[0], facts


def _load(weights: str, **settings: Any):
    shape = read_shape(weights)
    config = MultiscreenConfig(**shape, **settings)
    arrays = dict(np.load(f"{weights}/{SOURCE.replace('/', '-')}.npz"))
    params = jax.tree.map(jnp.asarray, convert.from_torch(SOURCE, arrays, config))
    return params, config, jnp.asarray(np.load(f"{weights}/tokens.npy"))


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
