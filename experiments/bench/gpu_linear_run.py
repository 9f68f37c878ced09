"""The linear family's kernels on this machine's GPU: errors, and time beside the chunk form.

    python -m experiments.bench.gpu_linear_run
    python -m experiments.bench.gpu_linear_run --batch 8 --length 16384 --seconds 600

At the shapes of 800M models, in bfloat16, with and without levels. Errors are relative, of results
and all gradients, against the chunk form with float32 products of the same inputs. What matters
most comes first: a step that would start after `seconds` is left out. Nothing is written.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from multiscreen_jax.train import options
from pallas_kernels import (
    gated_delta_rule,
    interpret_kernels,
    log_linear_gated_delta_rule,
    log_linear_ssd,
    ssd,
)
from pallas_kernels.linear_attention.gpu_walk import CHUNK
from pallas_kernels.linear_attention.pallas_gpu import walk
from pallas_kernels.linear_attention.tokens import Levels

INNER = CHUNK.bit_length()


class Case(NamedTuple):
    name: str
    heads: int
    groups: int
    key_dim: int
    value_dim: int
    delta: bool
    levels: bool


CASES = (
    Case("Mamba-2", 48, 1, 128, 64, delta=False, levels=False),
    Case("log-linear Gated DeltaNet", 6, 6, 192, 384, delta=True, levels=True),
    Case("Gated DeltaNet", 6, 6, 192, 384, delta=True, levels=False),
    Case("log-linear Mamba-2", 48, 1, 128, 64, delta=False, levels=True),
)


def make_inputs(case: Case, batch: int, length: int) -> list[jax.Array]:
    """q, k, v, g, beta, level scales."""
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, batch, length, case.groups, case.key_dim))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    q *= case.key_dim**-0.5
    v = rng.standard_normal((batch, length, case.heads, case.value_dim))
    g, beta = rng.standard_normal((2, batch, length, case.heads))
    scales = rng.random((batch, length, case.heads, INNER + _slots(length)))
    tokens = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    numbers = (-0.05 * np.abs(g), 1 / (1 + np.exp(-beta)), scales)
    return tokens + [jnp.asarray(x, jnp.float32) for x in numbers]


def _slots(length):
    return (-(-length // CHUNK)).bit_length()


def by_kernels(case: Case) -> Callable[..., jax.Array]:
    def op(q, k, v, g, beta, scales):
        levels, count = None, 1
        if case.levels:
            count = _slots(v.shape[1])
            chunks = range(-(-v.shape[1] // CHUNK))
            trailing_ones = [(~n & (n + 1)).bit_length() - 1 for n in chunks]
            masks = (jnp.asarray([list(x)] * len(v)) for x in (chunks, trailing_ones))
            levels = Levels(scales, *masks)
        states = jnp.zeros((len(v), case.heads, count, case.key_dim, case.value_dim))
        beta = beta if case.delta else None
        return walk(q, k, v, g, beta, states, None, levels, None)[0]

    return op


def by_chunks(case: Case, precision: str | None) -> Callable[..., jax.Array]:
    def op(q, k, v, g, beta, scales):
        how = {"implementation": "chunked", "precision": precision, "scale": 1.0}
        given = (beta,) if case.delta else ()
        if case.levels:
            rule = log_linear_gated_delta_rule if case.delta else log_linear_ssd
            return rule(q, k, v, g, *given, scales, **how)[0]
        rule = gated_delta_rule if case.delta else ssd
        return rule(q, k, v, g, *given, **how)[0]

    return op


def with_gradients(op: Callable[..., jax.Array]) -> Callable[..., Any]:
    def run(cotangent, *inputs):
        y, pullback = jax.vjp(op, *inputs)
        return y, *pullback(cotangent)

    return run


def errors(got: Any, expected: Any) -> str:
    names = ("y", "dq", "dk", "dv", "dg", "dbeta", "dscales")
    words = []
    for name, a, b in zip(names, got, expected, strict=True):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        size = np.linalg.norm(b)
        if size:
            words.append(f"{name} {np.linalg.norm(a - b) / size:.1e}")
    return ", ".join(words)


def milliseconds(function: Callable[..., Any], inputs: list[jax.Array], runs: int) -> float:
    jax.block_until_ready(function(*inputs))
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(function(*inputs))
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main(batch: int = 2, length: int = 4096, seconds: float = 150, runs: int = 10) -> None:
    """Run and print.

    Args:
        batch: B.
        length: T.
        seconds: after which no further step starts.
        runs: of which a time is the median.
    """
    began = time.perf_counter()
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, B={batch}, T={length}", flush=True)
    expected = {}

    def step(case, what, op, backward, check):
        elapsed = time.perf_counter() - began
        if elapsed > seconds:
            return
        inputs = make_inputs(case, batch, length)
        if backward:
            cotangent = jnp.cos(0.7 * jnp.arange(inputs[2].size)).reshape(inputs[2].shape)
            inputs = [cotangent.astype(jnp.bfloat16), *inputs]
        function = jax.jit(with_gradients(op) if backward else op)
        if check == "is exact":
            expected[case] = jax.tree.map(np.asarray, function(*inputs))
            return
        took = milliseconds(function, inputs, runs)
        words = f"; errors: {errors(function(*inputs), expected[case])}" if check else ""
        way = "forward + backward" if backward else "forward"
        print(f"[{elapsed:4.0f} s] {case.name}, {what}, {way}: {took:.3f} ms{words}", flush=True)

    with interpret_kernels(device.platform != "gpu"):
        for case in CASES:
            step(case, "exact", by_chunks(case, "highest"), True, "is exact")
            step(case, "kernels", by_kernels(case), True, "errors")
            step(case, "chunked", by_chunks(case, None), True, "errors")
        for case in CASES:
            step(case, "kernels", by_kernels(case), False, None)
            step(case, "chunked", by_chunks(case, None), False, None)


if __name__ == "__main__":
    options.call(main)
