"""The screening op on this machine's device: parity, time, and the roofline.

    python -m experiments.bench.kernels
    python -m experiments.bench.kernels --models 286m --lengths 4096 32768 131072 --dtype bfloat16

First every implementation that runs here is compared with `reference` in float32, values and all
gradients; a kernel that differs ends the run without a table. On a CPU, kernels are interpreted for
this and not timed. Then the implementations and softmax attention (`jax.nn.dot_product_attention`,
causal, heads of the value dimension) take turns; medians.

The roofline is the larger of FLOPs / peak and bytes / bandwidth of the device, with pairs inside
the windows and every input and output moved once: no method can be faster.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import report
from multiscreen_jax.models.multiscreen import PSI
from multiscreen_jax.train import options
from pallas_kernels import interpret_kernels, screening
from pallas_kernels.common import dispatch

KEY_DIM, VALUE_DIM = 16, 64
# Dense bfloat16 FLOP/s and bytes/s, from the makers' data sheets.
PEAKS = {
    "TPU v5 lite": (197e12, 819e9),
    "TPU v5": (459e12, 2765e9),
    "TPU v6 lite": (918e12, 1640e9),
    "NVIDIA A100-SXM4-80GB": (312e12, 2039e9),
    "NVIDIA H100 80GB HBM3": (989e12, 3352e9),
}
WINDOW_SETS = ("initial", "trained")


def windows_of(name: str, heads: int) -> np.ndarray:
    """Initial windows, 2 to 257; "trained": the same with every tenth tile, at least one, infinite.

    About a tenth of a trained model's tiles outgrow their training length (arXiv:2604.01178).
    """
    windows = np.exp(np.linspace(0, np.log(256), heads)) + 1
    if name == "trained":
        windows[-max(1, round(heads / 10)) :] = np.inf
    return windows


def make_inputs(
    length: int,
    heads: int,
    windows: np.ndarray,
    dtype: Any,
    key_dim: int = KEY_DIM,
    value_dim: int = VALUE_DIM,
) -> list[jax.Array]:
    """q, k, v, window, width and a cotangent. Half of the keys lie near the query before them."""
    keys = jax.random.split(jax.random.key(0), 6)

    def unit(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    shape = (1, length, heads)
    q = unit(jax.random.normal(keys[0], (*shape, key_dim)))
    noise = jnp.where(jax.random.bernoulli(keys[1], 0.5, shape), 0.1, 10.0)[..., None]
    k = unit(jnp.roll(q, 1, axis=1) + noise * jax.random.normal(keys[2], q.shape))
    v = unit(jax.random.normal(keys[3], (*shape, value_dim)))
    cotangent = jax.random.normal(keys[4], v.shape)
    per_head = [jnp.asarray(windows, jnp.float32), jnp.full(heads, 0.5)]
    return [*(x.astype(dtype) for x in (q, k, v)), *per_head, cotangent.astype(dtype)]


def forward(op: Callable) -> Callable:
    return jax.jit(lambda *args: op(*args[:-1]))


def forward_and_backward(op: Callable) -> Callable:
    def run(*args):
        h, pullback = jax.vjp(op, *args[:-1])
        return h, *pullback(args[-1])

    return jax.jit(run)


def softmax_attention(q, k, v, window, width):
    """Causal softmax attention with as many heads; it has no windows and no widths."""
    del q, k, window, width
    return jax.nn.dot_product_attention(v, v, v, is_causal=True)


def usable(length: int, heads: int, dtype: Any) -> dict[str, str | None]:
    """The implementations besides `reference`: None, or why one cannot run here."""
    reasons: dict[str, str | None] = {}
    args = make_inputs(length, heads, windows_of("initial", heads), dtype)[:-1]
    for name in dispatch.IMPLEMENTATIONS[1:]:
        try:
            jax.eval_shape(partial(screening, implementation=name), *args)
            reasons[name] = None
        except NotImplementedError as error:
            reasons[name] = str(error)
    return reasons


def check_parity(name: str, length: int, heads: int, tolerance: float = 1e-4) -> float:
    """Largest error of a value or gradient against `reference`, relative to its array's largest.

    Raises:
      SystemExit: it exceeds the tolerance.
    """
    args = make_inputs(length, heads, windows_of("trained", heads), jnp.float32)
    want = forward_and_backward(partial(screening, implementation="reference"))(*args)
    op = partial(screening, implementation=name, precision="highest")
    got = forward_and_backward(op)(*args)
    errors = [
        float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in zip(got, want, strict=True)
    ]
    if not max(errors) <= tolerance:
        raise SystemExit(f"{name} differs from reference by {max(errors):.1e}")
    return max(errors)


def roofline(length: int, windows: np.ndarray, itemsize: int) -> tuple[float, float] | None:
    """Least seconds of a forward, and of forward and backward; None for an unknown device."""
    peaks = PEAKS.get(jax.devices()[0].device_kind)
    if peaks is None:
        return None
    reach = np.minimum(np.ceil(windows), length)
    pairs = float(np.sum(reach * length - reach * (reach - 1) / 2))
    elements = length * len(windows)
    forward_flops = 2 * (KEY_DIM + VALUE_DIM) * pairs
    backward_flops = 2 * (3 * KEY_DIM + 2 * VALUE_DIM) * pairs
    forward_bytes = itemsize * elements * (2 * KEY_DIM + 2 * VALUE_DIM)
    backward_bytes = itemsize * elements * (4 * KEY_DIM + 3 * VALUE_DIM)
    first = max(forward_flops / peaks[0], forward_bytes / peaks[1])
    return first, first + max(backward_flops / peaks[0], backward_bytes / peaks[1])


def seconds(function: Callable, args: list[jax.Array]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start


def measure(length: int, heads: int, windows: str, names: list[str], dtype: Any, repeats: int):
    """Rows of one shape: every contender's medians, in turns."""
    args = make_inputs(length, heads, windows_of(windows, heads), dtype)
    ops = {name: partial(screening, implementation=name) for name in names}
    square = 4 * heads * length**2
    if jax.default_backend() != "cpu" or square < 2**31:  # it holds the square on a CPU
        ops["softmax attention"] = softmax_attention
    runs = {(name, way): way(op) for name, op in ops.items() for way in WAYS}
    for run in runs.values():
        seconds(run, args)  # compiles
    times: dict[Any, list[float]] = {key: [] for key in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            times[key].append(seconds(run, args))
    medians = {key: statistics.median(values) for key, values in times.items()}
    bounds = roofline(length, windows_of(windows, heads), jnp.dtype(dtype).itemsize)
    for name in ops:
        row = {"T": length, "heads": heads, "windows": windows, "contender": name}
        for index, (way, title) in enumerate(WAYS.items()):
            took = medians[name, way]
            row[f"{title} ms"] = 1e3 * took
            row[f"{title} / chunked"] = took / medians["chunked", way]
            if bounds is not None and name != "softmax attention":
                row[f"{title} roofline"] = bounds[index] / took
        yield row


WAYS = {forward: "forward", forward_and_backward: "both"}


def main(
    models: tuple[str, ...] = ("4m",),
    lengths: tuple[int, ...] = (1024, 4096),
    dtype: Literal["float32", "bfloat16"] = "float32",
    repeats: int = 5,
    parity_length: int = 300,
    output: Path = report.RESULTS / "kernels.csv",
) -> None:
    """Check, time and write one table.

    Args:
        models: the paper's sizes, which set the number of heads: 4m, 28m, 286m, 1.3b, 4b.
        lengths: sequence lengths T, at batch 1.
        dtype: of q, k and v.
        repeats: timed runs of each contender.
        parity_length: tokens of the comparison with `reference`.
        output: where the table goes.
    """
    facts = report.machine_facts()
    device = jax.devices()[0]
    notes = [f"device: {device.device_kind}; {dtype}, K={KEY_DIM}, V={VALUE_DIM}, B=1"]
    heads = PSI[models[0]]
    reasons = usable(parity_length, heads, dtype)
    for name, reason in reasons.items():
        with interpret_kernels(reason is not None):
            error = check_parity(name, parity_length, min(heads, 4))
        how = "compiled" if reason is None else "interpreted, not timed"
        notes.append(f"{name}: within {error:.1e} of reference, values and gradients ({how})")
    names = [name for name, reason in reasons.items() if reason is None]
    rows = [
        row
        for model in models
        for length in lengths
        for windows in WINDOW_SETS
        for row in measure(length, PSI[model], windows, names, dtype, repeats)
    ]
    report.publish(rows, output, notes, facts)


if __name__ == "__main__":
    options.call(main)
