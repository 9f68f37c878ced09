"""The work that rejection saves a trained Multiscreen, counted in tiles of the kernels.

    python -m experiments.train quickstart
    python -m experiments.bench.rejection runs/quickstart

A tile is a block of queries against a block of keys. One that holds a pair inside the window is
visited: its similarities are computed. Only if one of them passes the threshold does the kernel go
on to the values, or in the backward pass to the other four products.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.bench import report
from multiscreen_jax.data import open_pipeline
from multiscreen_jax.train import options
from multiscreen_jax.train.trained_run import open_run


def tile_inputs(model, params, tokens):
    """q and k [N, H, T, K], window and width [N, H] of every layer, for one row of tokens."""
    _, sown = model.apply({"params": params}, tokens[None], mutable=["intermediates"])
    tiles = sown["intermediates"]["layers"]["tiles"]
    q, k = (jnp.moveaxis(tiles[name][:, 0], 2, 1) for name in ("query", "key"))
    return q.astype(jnp.float32), k.astype(jnp.float32), tiles["window"], tiles["width"]


@partial(jax.jit, static_argnums=(4, 5))
def count(q, k, window, width, queries: int, keys: int) -> np.ndarray:
    """(tiles visited, tiles with an accepted pair, pairs inside the window, pairs accepted)."""
    length = len(q)
    position = jnp.arange(length)
    distance = position[:, None] - position
    inside = (distance >= 0) & (distance < window)
    accepted = inside & (jnp.dot(q, k.T, precision="highest") > 1 - width)

    def tiles(pairs):
        padded = jnp.pad(pairs, [(0, -length % queries), (0, -length % keys)])
        return padded.reshape(-(-length // queries), queries, -1, keys).any((1, 3)).sum()

    return jnp.stack([tiles(inside), tiles(accepted), inside.sum(), accepted.sum()])


def main(
    run: Annotated[Path, tyro.conf.Positional],
    length: int = 2048,
    shapes: tuple[tuple[int, int], ...] = ((64, 64), (128, 128), (256, 256), (512, 512)),
    output: Path = report.RESULTS / "rejection.csv",
) -> None:
    """Count, over one long stretch of the validation text.

    Args:
        run: folder of a trained Multiscreen.
        length: tokens read.
        shapes: queries and keys of a tile.
        output: where the table goes.
    """
    facts = report.machine_facts()
    trained = open_run(run)
    params, model, data = trained.params, trained.model, trained.readable()
    pipeline = open_pipeline(data, "valid")
    # The validation split is not shuffled: its rows follow each other in the text.
    batches = -(-length // (data.sequence_length * data.batch_size))
    rows = [pipeline.batch(n)["tokens"][:, :-1].ravel() for n in range(batches)]
    tokens = np.concatenate(rows)[:length]
    inputs = jax.jit(tile_inputs, static_argnums=0)(model, params, tokens)
    flat = [x.reshape(-1, *x.shape[2:]) for x in inputs]
    table = []
    for queries, keys in shapes:
        counts = [count(*tile, queries, keys) for tile in zip(*flat, strict=True)]
        visited, live, inside, accepted = np.sum(counts, axis=0)
        table.append(
            {
                "queries": queries,
                "keys": keys,
                "tiles visited": int(visited),
                "value products skipped": 1 - live / visited,
                "pairs rejected": 1 - accepted / inside,
            }
        )
    window, width = np.asarray(inputs[2]), np.asarray(inputs[3])
    notes = [
        f"{window.size} tiles of the model, {len(tokens)} tokens of its validation text; windows "
        f"{window.min():.1f} to {window.max():.0f} (median {np.median(window):.0f}), widths "
        f"{width.min():.2f} to {width.max():.2f} (median {np.median(width):.2f})"
    ]
    report.publish(table, output, notes, facts)


if __name__ == "__main__":
    options.call(main)
