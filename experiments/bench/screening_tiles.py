"""Time and visited tiles of the chunked screening op, by length.

    python -m experiments.bench.screening_tiles
    python -m experiments.bench.screening_tiles --lengths 1024 2048 --repeats 30 --backward

Two sets of windows of an 8-head layer: the initial ones (2 to 257 tokens), and the same with the
last head's window infinite. Time should double with the length for the first set, and pairs visited
should stay close to the pairs inside the windows, save for the narrowest heads, whose windows are
smaller than any tile. Times are process CPU time (medians of interleaved runs, and minima), so that
a busy machine disturbs them less; pin the process to one core to read them as latencies.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from multiscreen_jax.train import options
from pallas_kernels.screening.chunked import count_tiles, screening_chunked

HEADS, KEY_DIM, VALUE_DIM = 8, 16, 64
INITIAL = np.exp(np.linspace(0, np.log(256), HEADS)) + 1
WINDOWS = {"initial": INITIAL, "one infinite": np.append(INITIAL[:-1], np.inf)}


def unit(key, *shape):
    x = jax.random.normal(key, shape)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def make_inputs(length, windows):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k = (unit(key, 1, length, HEADS, KEY_DIM) for key in keys[:2])
    v, cotangent = (unit(key, 1, length, HEADS, VALUE_DIM) for key in keys[2:])
    return q, k, v, jnp.asarray(windows, jnp.float32), jnp.full(HEADS, 0.5), cotangent


@jax.jit
def forward(*args):
    return screening_chunked(*args[:-1])


@jax.jit
def forward_and_backward(*args):
    h, pullback = jax.vjp(screening_chunked, *args[:-1])
    return h, pullback(args[-1])


def measure(function, args) -> float:
    jax.block_until_ready(function(*args))  # the row before may have cooled caches and allocator
    start = time.process_time()
    jax.block_until_ready(function(*args))
    return time.process_time() - start


def main(
    lengths: tuple[int, ...] = tuple(2**n for n in range(10, 17)),
    repeats: int = 5,
    backward: bool = False,
) -> None:
    """Print one table of counts and one of times.

    Args:
        lengths: sequence lengths T, at batch 1.
        repeats: timed runs per row.
        backward: time forward and backward together, not the forward alone.
    """
    print(
        "Per head: window, queries x keys of a tile: tiles, pairs visited / pairs inside the window"
    )
    for length in lengths:
        for name, windows in WINDOWS.items():
            cells = [
                f"{w:.0f} {c.shape.queries}x{c.shape.keys}: {c.tiles}, {c.pairs / c.inside:.2f}"
                for w, c in zip(windows, count_tiles(length, windows), strict=True)
            ]
            print(f"{length:>6} {name:>12} | " + " | ".join(cells))

    function = forward_and_backward if backward else forward
    rows = {(t, name): make_inputs(t, w) for t in lengths for name, w in WINDOWS.items()}
    times = {row: [] for row in rows}
    for _ in range(repeats):
        for row, args in rows.items():
            times[row].append(measure(function, args))

    sizes = (6, 12, 10, 8, 9, 7)
    titles = ("T", "windows", "median ms", "min ms", "us/token", "pairs")
    print("\n" + " ".join(f"{t:>{size}}" for t, size in zip(titles, sizes, strict=True)))
    for (length, name), seconds in times.items():
        counts = count_tiles(length, WINDOWS[name])
        ratio = sum(c.pairs for c in counts) / sum(c.inside for c in counts)
        low = min(seconds)
        print(
            f"{length:>6} {name:>12} {1e3 * np.median(seconds):>10.2f} {1e3 * low:>8.2f}"
            f" {1e6 * low / length:>9.2f} {ratio:>7.2f}"
        )


if __name__ == "__main__":
    options.call(main)
