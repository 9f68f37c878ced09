"""Where a cache's new tokens go: lengths, documents, padding, overflow."""

import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax.cache import last_real, new_cursor, place


def _ints(*rows):
    return jnp.asarray(rows, jnp.int32)


def test_tokens_are_placed_after_the_cached_ones():
    chunk, cursor = place(new_cursor(2, 8), _ints([1, 1, 2, 2], [1, 1, 0, 0]), 4)
    np.testing.assert_array_equal(chunk.index[0], [0, 1, 2, 3])
    np.testing.assert_array_equal(chunk.position[0], [0, 1, 0, 1])
    np.testing.assert_array_equal(cursor.length, [4, 2])
    np.testing.assert_array_equal(cursor.segment, [2, 1])
    np.testing.assert_array_equal(cursor.start, [2, 0])
    # Row 0 goes on with document 2, row 1 begins another: only the first may read the cache.
    chunk, cursor = place(cursor, _ints([2, 2, 3], [4, 4, 0]), 3)
    np.testing.assert_array_equal(chunk.index, [[4, 5, 6], [2, 3, 4]])
    np.testing.assert_array_equal(chunk.position[0], [2, 3, 0])
    np.testing.assert_array_equal(chunk.position[1, :2], [0, 1])
    np.testing.assert_array_equal(chunk.continues, [[True, True, False], [False] * 3])
    np.testing.assert_array_equal(cursor.length, [7, 4])
    np.testing.assert_array_equal(cursor.start, [6, 2])
    # Without ids the last document goes on.
    chunk, cursor = place(cursor, None, 1)
    np.testing.assert_array_equal(chunk.segment_ids, [[1], [1]])
    np.testing.assert_array_equal(chunk.position, [[1], [2]])
    assert chunk.continues.all()
    assert not chunk.overflow.any()
    # Row 0 is full now.
    chunk, cursor = place(cursor, None, 1)
    np.testing.assert_array_equal(chunk.overflow, [True, False])
    chunk, _ = place(cursor, _ints([0], [0]), 1)
    np.testing.assert_array_equal(chunk.overflow, [True, False])


def test_padding_moves_nothing():
    _, before = place(new_cursor(1, 8), _ints([1, 5]), 2)
    chunk, after = place(before, _ints([0, 0, 0]), 3)
    for name in ("length", "segment", "start"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    assert not chunk.continues.any()


def test_last_real():
    np.testing.assert_array_equal(
        last_real(_ints([1, 2, 0], [0, 0, 0], [1, 1, 1]), 3, 3), [1, 0, 2]
    )
    np.testing.assert_array_equal(last_real(None, 2, 5), [4, 4])


@pytest.mark.parametrize(("batch", "length", "name"), [(0, 4, "batch"), (2, 0, "max_length")])
def test_sizes_are_checked(batch, length, name):
    with pytest.raises(ValueError, match=f"{name} of a cache must be an integer >= 1, got 0"):
        new_cursor(batch, length)
