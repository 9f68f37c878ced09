import numpy as np
import pytest

from multiscreen_jax.convert.layout import (
    axis_groups,
    join_tensor,
    shape_of,
    spelled_shape,
    split_tensor,
)

SIZES = {"h": 2, "k": 3, "v": 5, "d": 7}


def test_axis_groups():
    assert axis_groups("(h k+v) d") == [["h", "k+v"], ["d"]]
    assert axis_groups("1") == [["1"]]
    assert axis_groups("") == []


@pytest.mark.parametrize(
    ("axes", "shape"), [("(h k+v) d", (16, 7)), ("d (h v)", (7, 10)), ("1", (1,)), ("", ())]
)
def test_shape(axes, shape):
    assert shape_of(axes, SIZES) == shape


def test_shape_in_words():
    words = {"h": "num_heads", "k": "key_dim", "v": "value_dim", "d": "model_dim"}
    assert spelled_shape("(h k+v) d", words) == "(num_heads*(key_dim+value_dim), model_dim)"
    assert spelled_shape("h", words) == "(num_heads,)"
    blocks = spelled_shape("[h v | h] d", words)
    assert blocks == "(num_heads*value_dim+num_heads, model_dim)"


def test_fused_rows_are_cut_inside_each_head():
    tensor = np.arange(16 * 7).reshape(16, 7)
    first, second = split_tensor(tensor, "(h k+v) d", ["d h k", "d h v"], SIZES)
    assert first.shape == (7, 2, 3)
    assert second.shape == (7, 2, 5)
    np.testing.assert_array_equal(first[:, 1], tensor[8:11].T)
    np.testing.assert_array_equal(second[:, 0], tensor[3:8].T)


def test_blocks_follow_each_other():
    tensor = np.arange(15 * 7).reshape(15, 7)
    first, second = split_tensor(tensor, "[h v | v] d", ["d h v", "d v"], SIZES)
    np.testing.assert_array_equal(first[:, 1], tensor[5:10].T)
    np.testing.assert_array_equal(second, tensor[10:].T)


@pytest.mark.parametrize(
    ("axes", "parts"),
    [
        ("(h k+v) d", ["d h k", "d h v"]),
        ("d (h v)", ["h v d"]),
        ("(h k) d", ["d h k"]),
        ("h d k", ["d h k"]),
        ("1", [""]),
        ("", [""]),
        ("d 1 k", ["k d"]),
        ("[h v | h | k] d", ["d h v", "h d", "d k"]),
        ("[h v | k] 1 d", ["d h v", "d k"]),
        ("[h v | k]", ["h v", "k"]),
    ],
)
def test_join_undoes_split(axes, parts):
    tensor = np.random.default_rng(0).standard_normal(shape_of(axes, SIZES))
    pieces = split_tensor(tensor, axes, parts, SIZES)
    assert [x.shape for x in pieces] == [shape_of(part, SIZES) for part in parts]
    np.testing.assert_array_equal(join_tensor(pieces, axes, parts, SIZES), tensor)
