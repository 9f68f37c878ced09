"""Ops under meshes of eight devices against one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.common.sharding import shard_op
from tests.programs import run_module


@pytest.mark.parametrize(
    "implementation",
    [
        "chunked",
        pytest.param("pallas_tpu", marks=pytest.mark.slow),
        pytest.param("pallas_gpu", marks=pytest.mark.slow),
    ],
)
def test_screening_and_its_gradients_are_divided_over_rows_heads_and_tokens(implementation):
    lines = run_module("tests.common.sharded_screening", implementation).stdout.splitlines()
    assert len(lines) == 11
    # Sums of the loss and of the gradients of windows and widths; no activation is gathered.
    for line in lines:
        assert "all-reduce" in line
        assert "all-to-all" not in line
        assert "all-gather" not in line, line
        sequence_is_whole = line.split()[2] == "1"
        assert sequence_is_whole != ("collective-permute" in line), line


def test_without_a_mesh_the_op_itself_is_called():
    x = jnp.arange(6.0).reshape(2, 3)
    text = str(jax.make_jaxpr(lambda x: shard_op(jnp.negative, ("bh",), "bh", x))(x))
    assert "shard_map" not in text
    np.testing.assert_array_equal(shard_op(jnp.negative, ("bh",), "bh", x), -x)
