"""Sequences divided among devices: values, states, gradients, what is exchanged, errors."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.log_linear import LogLinearState, empty_state, parallel
from tests.common.divided import WHOLE, divide
from tests.log_linear.cases import OPS, inputs
from tests.log_linear.parallel import apply
from tests.marks import slow_unless
from tests.programs import run_module


@pytest.mark.parametrize("op", slow_unless((), OPS, exhaustive=("ssd",)))
def test_a_divided_sequence_is_the_whole(op):
    run_module("tests.log_linear.parallel", op)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("length", [1, 8])
def test_shapes_and_dtypes_are_those_of_the_op(op, length):
    x = {
        name: value if name in ("g", "beta") else jnp.asarray(value, jnp.bfloat16)
        for name, value in inputs(length, 5).items()
    }
    y, state = jax.eval_shape(lambda x: apply(op, 1, x), x)
    assert (y.shape, y.dtype) == (x["v"].shape, jnp.bfloat16)
    wanted = jax.eval_shape(lambda: empty_state(2, 2, 5, 8, 6, jnp.dtype("float32")))
    assert isinstance(state, LogLinearState)
    assert [(s.shape, s.dtype) for s in state] == [(s.shape, s.dtype) for s in wanted]


@pytest.mark.parametrize(
    ("length", "levels", "change", "error", "message"),
    [
        (12, 5, {}, ValueError, "a power of two of tokens, got 12"),
        (8, 3, {}, ValueError, "3 levels hold 4 tokens, got 8"),
        (8, 5, {"beyond_levels": "drop"}, ValueError, "beyond_levels must be one of"),
        (8, 5, {"segment_ids": jnp.ones((2, 8), int)}, NotImplementedError, "segment_ids of a seq"),
        (
            8,
            5,
            {"initial_state": empty_state(2, 2, 5, 8, 6, jnp.dtype("float32"))},
            NotImplementedError,
            "initial_state of a sequence divided among devices",
        ),
    ],
)
@pytest.mark.parametrize("op", OPS)
def test_bad_arguments(op, length, levels, change, error, message):
    x = inputs(length, levels)
    if op == "ssd":
        del x["beta"]
    function = inspect.unwrap(getattr(parallel, f"log_linear_{op}"))
    call = divide(lambda x: function(**x, **change, axis_name="seq"), 1, (WHOLE,), WHOLE)
    with pytest.raises(error, match=message):
        jax.eval_shape(call, jax.tree.map(jnp.asarray, x))


def test_levels_have_to_hold_all_devices_tokens():
    x = inputs(8, 4)
    call = jax.vmap(
        lambda x: parallel.log_linear_gated_delta_rule(**x, axis_name="seq"), axis_name="seq"
    )
    halves = jax.tree.map(lambda value: jnp.stack([value, value]), x)
    with pytest.raises(ValueError, match="4 levels hold 8 tokens, got 16; give 5 level scales"):
        jax.eval_shape(call, halves)
