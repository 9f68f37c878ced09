"""Sequences in two parts, the state handed on: the same as in one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.linear_attention.cases import OPS, apply, assert_close, make_case, run
from tests.marks import slow_unless

LENGTH = 70


def part(inputs, span):
    return {x: a[:, span] if x != "state" and a.ndim > 1 else a for x, a in inputs.items()}


@pytest.mark.parametrize("op", slow_unless(("gated_delta_rule", "normalised"), OPS))
def test_every_split(op):
    """Both parts padded to one length, so that two programs serve all splits."""
    case = make_case(op, LENGTH)
    whole = run(op, case)
    here = np.arange(LENGTH)

    @jax.jit
    def forward(inputs, count):
        real = jnp.broadcast_to(here < count, (2, LENGTH)).astype(jnp.int32)
        return apply(op, inputs, real, chunk_size=16)

    def later(x, at):
        return np.roll(x, -at, axis=1) if np.ndim(x) > 1 else x

    for at in range(1, LENGTH):
        first, state = forward(case.inputs, at)
        rest = {x: later(a, at) for x, a in case.inputs.items() if x != "state"}
        second, state = forward(rest | {"state": state}, LENGTH - at)
        y = np.concatenate(
            [np.asarray(first)[:, :at], np.asarray(second)[:, : LENGTH - at]], axis=1
        )
        got = {"y": y, "state": state}
        assert_close(got, {x: whole[x] for x in got}, what=f"split at {at}")


@pytest.mark.parametrize("at", slow_unless((33,), (1, 16, 33, 69), exhaustive=(1, 16)))
@pytest.mark.parametrize("op", ["normalised", "ssd", "gated_delta_rule"])
def test_parts_of_their_own_lengths(op, at):
    case = make_case(op, LENGTH)
    whole = run(op, case)
    forward = jax.jit(lambda inputs: apply(op, inputs, chunk_size=16))
    first, state = forward(part(case.inputs, slice(None, at)))
    second, state = forward(part(case.inputs, slice(at, None)) | {"state": state})
    got = {"y": np.concatenate([first, second], axis=1), "state": state}
    assert_close(got, {x: whole[x] for x in got})


@pytest.mark.parametrize("op", ["normalised", "ssd", "gated_delta_rule"])
def test_gradients_through_a_split(op):
    case = make_case(op, LENGTH)

    @jax.jit
    def split(inputs):
        first, state = apply(op, part(inputs, slice(None, 33)), chunk_size=16)
        second, state = apply(op, part(inputs, slice(33, None)) | {"state": state}, chunk_size=16)
        return jnp.concatenate([first, second], axis=1), state

    (y, state), pull = jax.vjp(split, case.inputs)
    gradients = pull(case.cotangents)[0]
    got = {"y": y, "state": state} | {f"d{x}": a for x, a in gradients.items()}
    assert_close(got, run(op, case))


@pytest.mark.parametrize("op", ["normalised", "ssd", "gated_delta_rule"])
def test_token_by_token(op):
    """Prefill, then tokens one at a time."""
    case = make_case(op, LENGTH)
    whole = run(op, case)
    step = jax.jit(lambda inputs: apply(op, inputs))
    y, state = apply(op, part(case.inputs, slice(None, 65)))
    parts = [y]
    for t in range(65, LENGTH):
        y, state = step(part(case.inputs, slice(t, t + 1)) | {"state": state})
        parts.append(y)
    got = {"y": np.concatenate(parts, axis=1), "state": state}
    assert_close(got, {x: whole[x] for x in got})


@pytest.mark.parametrize("op", OPS)
def test_states_are_returned_on_request_in_float32(op):
    case = make_case(op, 7)
    inputs = {x: jnp.asarray(a, jnp.bfloat16) if x in "qkv" else a for x, a in case.inputs.items()}
    y, state = apply(op, inputs)
    assert y.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
    function, names = OPS[op]
    inputs = jax.tree.map(jnp.asarray, inputs)
    again, nothing = function(*(inputs[x] for x in names), initial_state=inputs["state"])
    assert nothing is None
    np.testing.assert_array_equal(again, y)
