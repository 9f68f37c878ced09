"""Sequences divided among devices: values, states, gradients, what is exchanged, errors."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.linear_attention import parallel
from tests.common.divided import WHOLE, divide
from tests.linear_attention.cases import OPS, make_case
from tests.linear_attention.parallel import apply
from tests.marks import slow_unless
from tests.programs import run_module


@pytest.mark.parametrize(
    "op", slow_unless((), OPS, exhaustive=OPS.keys() - {"ssd", "gated_delta_rule"})
)
def test_a_divided_sequence_is_the_whole(op):
    run_module("tests.linear_attention.parallel", op)


@pytest.mark.parametrize("op", OPS)
def test_shapes_and_dtypes_are_those_of_the_op(op):
    case = make_case(op, 7, groups=2)
    inputs = {x: jnp.asarray(a, jnp.bfloat16) if x in "qkv" else a for x, a in case.inputs.items()}
    ids = jnp.ones((2, 7), jnp.int32)
    y, state = jax.eval_shape(lambda inputs: apply(op, 1, inputs, ids), inputs)
    assert (y.shape, y.dtype) == (inputs["v"].shape, jnp.bfloat16)
    got, wanted = (jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (state, inputs["state"]))
    assert got == wanted


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        ("ssd", {"initial_state": np.zeros((2, 4, 5, 8), np.float32)}, "initial_state must be"),
        ("delta_rule", {"initial_state": np.zeros((4, 5, 9), np.float32)}, "initial_state must be"),
        ("linear_attention", {"initial_state": (1, 2)}, "must be a NormalizedState with normalize"),
        ("ssd", {"g": np.zeros((2, 7, 3), np.float32)}, "g must be"),
        ("ssd", {"segment_ids": np.zeros((2, 6), np.int32)}, "segment_ids must be"),
        ("gated_delta_rule", {"v": np.zeros((2, 7, 4), np.float32)}, "v must be"),
    ],
)
def test_bad_arguments(op, change, message):
    inputs = make_case(op, 7).inputs
    del inputs["state"]
    # Without the type checks that tests add around it: users do not have them.
    function = inspect.unwrap(getattr(parallel, op))
    call = divide(lambda inputs: function(**inputs, axis_name="seq"), 1, (WHOLE,), WHOLE)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call, jax.tree.map(jnp.asarray, inputs | change))
