"""Ops under meshes of eight devices against one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.common.sharding import shard_op
from tests.programs import run_module


@pytest.mark.parametrize(
    ("arguments", "meshes"),
    [
        pytest.param("chunked", 11, marks=pytest.mark.exhaustive),
        pytest.param("pallas_tpu few", 2, marks=pytest.mark.slow),
        pytest.param("pallas_gpu few", 2, marks=pytest.mark.exhaustive),
        pytest.param("pallas_tpu", 11, marks=pytest.mark.exhaustive),
        pytest.param("pallas_gpu", 11, marks=pytest.mark.exhaustive),
    ],
)
def test_screening_and_its_gradients_are_divided_over_rows_heads_and_tokens(arguments, meshes):
    lines = run_module("tests.common.sharded_screening", *arguments.split()).stdout.splitlines()
    assert len(lines) == meshes
    # Sums of the loss and of the gradients of windows and widths; no activation is gathered.
    for line in lines:
        assert "all-reduce" in line
        assert "all-to-all" not in line
        assert "all-gather" not in line, line
        sequence_is_whole = line.split()[2] == "1"
        assert sequence_is_whole != ("collective-permute" in line), line


@pytest.mark.slow
def test_a_window_that_is_nan_leaves_the_other_heads_of_a_divided_sequence_alone():
    run_module("tests.common.nan_window")


def test_without_a_mesh_the_op_itself_is_called():
    x = jnp.arange(6.0).reshape(2, 3)
    text = str(jax.make_jaxpr(lambda x: shard_op(jnp.negative, ("bh",), "bh", x))(x))
    assert "shard_map" not in text
    np.testing.assert_array_equal(shard_op(jnp.negative, ("bh",), "bh", x), -x)
