"""The Fenwick partition: table, merging rule, level count."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.log_linear.levels import bit_length, level_count, level_table, merge
from tests.goldens import golden_path


def test_the_table_is_the_authors_partition():
    file = np.load(golden_path("log_linear/levels.npz"))
    names = [name for name in file.files if name.startswith("weak_")]
    assert names
    for name in names:
        want = file[name]
        size = len(want)
        np.testing.assert_array_equal(np.where(want >= 0, level_table(size, 64), -1), want, name)


@pytest.mark.parametrize(
    ("length", "levels"), [(1, 1), (2, 2), (7, 4), (64, 7), (100, 8), (512, 10), (16384, 15)]
)
def test_level_count(length, levels):
    assert level_count(length) == levels


def test_bit_length():
    x = np.asarray([0, 1, 2, 3, 4, 255, 256, 2**30])
    np.testing.assert_array_equal(bit_length(jnp.asarray(x)), [int(v).bit_length() for v in x])


@pytest.mark.parametrize("levels", [6, 3, 2, 1])
def test_merging_keeps_every_token_in_the_bucket_of_its_level(levels):
    # A state whose matrix of level l has a one for every token in it.
    count = 31
    state = np.zeros((1, 1, levels, count, 1), np.float32)
    for t in range(count):
        state = np.array(merge(jnp.asarray(state), jnp.asarray([t])))
        state[0, 0, 0, t, 0] += 1
        held = state[0, 0, :, : t + 1, 0]
        want = np.minimum([(t ^ s).bit_length() for s in range(t + 1)], levels - 1)
        np.testing.assert_array_equal(held, np.arange(levels)[:, None] == want)
