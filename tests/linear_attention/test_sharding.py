"""The ops under meshes of eight devices against one device."""

import pytest

from tests.programs import run_module


@pytest.mark.exhaustive
def test_ops_and_their_gradients_are_divided_over_rows_and_heads():
    assert len(run_module("tests.linear_attention.sharded").stdout.splitlines()) == 9
