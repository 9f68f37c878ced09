"""Ops of the linear and log-linear family as contenders: inputs, and ours as factories."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels
from experiments.bench.harness import MEGABYTE

HEADS, DIM = 4, 64
ARGUMENTS = {
    "ssd": ("q", "k", "v", "g"),
    "delta_rule": ("q", "k", "v", "beta"),
    "gated_delta_rule": ("q", "k", "v", "g", "beta"),
    "log_linear_ssd": ("q", "k", "v", "g", "level_scales"),
    "log_linear_gated_delta_rule": ("q", "k", "v", "g", "beta", "level_scales"),
}
PARENTS = {"log_linear_ssd": "ssd", "log_linear_gated_delta_rule": "gated_delta_rule"}
_ENDS = 64  # tokens by which contenders are compared


def make_inputs(op: str, length: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The op's arguments, float32, one sequence, and a cotangent of its result."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal((1, length, HEADS, *shape), np.float32)

    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (normal(DIM), normal(DIM)))
    arrays = {
        "q": q,
        "k": k,
        "v": normal(DIM),
        "g": -0.1 * np.abs(normal()),
        "beta": 1 / (1 + np.exp(-normal())),
        "level_scales": 1 + 0.5 * normal((length - 1).bit_length() + 1),
    }
    return [arrays[name] for name in ARGUMENTS[op]], normal(DIM)


def fingerprint(y: np.ndarray, gradients: list[np.ndarray]) -> float:
    """One number by which results are compared, of the last outputs and the first gradients.

    Of one sequence these depend on everything.
    """
    parts = [y[0, -_ENDS:], *(x[0, :_ENDS] for x in gradients)]
    return float(sum(np.linalg.norm(np.float64(x)) for x in parts))


def ours(op: str, length: int, backward: bool) -> tuple[Callable[[], float], dict[str, Any]]:
    """The op, forward or also backward to all its arguments."""
    arrays, cotangent = make_inputs(op, length)
    function = getattr(pallas_kernels, op)

    def forward(*arrays: jax.Array) -> jax.Array:
        return function(*arrays, scale=1.0)[0]

    def both(cotangent: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        y, pullback = jax.vjp(forward, *arrays)
        return y, *pullback(cotangent)

    arguments = [jnp.asarray(x) for x in ([cotangent, *arrays] if backward else arrays)]
    compiled = jax.jit(both if backward else forward).lower(*arguments).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes / MEGABYTE

    def work() -> float:
        results = jax.block_until_ready(compiled(*arguments))
        y, *gradients = map(np.asarray, results if backward else [results])
        return fingerprint(y, gradients)

    return work, {"temporaries MB": round(temporaries, 1)}
