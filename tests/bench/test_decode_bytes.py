"""The bytes that are counted are those that the kernels, interpreted, report to have read."""

import functools

import jax
import numpy as np
import pytest

import pallas_kernels
from experiments.bench.decode_bytes import KERNELS, count_reads, made_tiles, measure
from pallas_kernels.screening import decode_gpu, decode_tpu
from pallas_kernels.screening.summaries import BlockSummaries, summarize
from tests.screening.decode_cases import clustered_keys, make_case


@pytest.mark.parametrize("summarized", [False, True])
@pytest.mark.parametrize(("name", "module"), [("gpu", decode_gpu), ("tpu", decode_tpu)])
def test_counts_are_the_kernels_own(name, module, summarized):
    keys_of = functools.partial(clustered_keys, run=200, spread=0.05)
    case = make_case(
        (2500, 700), (40.5, 900.0, np.inf), (0.5, 0.4, 0.3), dims=(16, 16), make_keys=keys_of
    )
    q, keys, _, positions, length, _, offset, size, window, width = case.arguments
    summaries = summarize(keys) if summarized else None
    with pallas_kernels.interpret_kernels():
        _, reads = jax.jit(module.decode_and_count)(*case.arguments, summaries)
    got = np.zeros_like(reads)
    for b, h in np.ndindex(got.shape[:2]):
        live = int(min(size[h], length[b]))
        slot = np.arange(live)
        newest = int(length[b]) - 1
        distance = int(positions[b, 0]) - (newest - (newest - slot) % int(size[h]))
        of_row = None if summaries is None else BlockSummaries(*(x[b : b + 1] for x in summaries))
        got[b, h] = count_reads(
            KERNELS[name], np.asarray(q[b, 0, h]), keys[b], int(offset[h]), live, distance,
            float(window[h]), float(width[h]), of_row,
        )  # fmt: skip
    np.testing.assert_array_equal(reads, got)
    assert (got.sum(0)[:, 1] > 0).all()


def test_random_keys_gain_by_keys_first_and_clusters_by_summaries():
    totals = {}
    for kind in ("random", "clustered"):
        tiles = made_tiles([np.inf], [0.3], kind, context=8192, queries=4)
        totals[kind] = measure(tiles, 8192)["gpu"]
    assert totals["random"]["keys first"] < 0.21 * totals["random"]["rings"]
    assert totals["random"]["summaries"] > totals["random"]["keys first"]
    assert totals["clustered"]["summaries"] < 0.5 * totals["clustered"]["keys first"]
