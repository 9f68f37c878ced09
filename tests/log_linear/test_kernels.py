"""The TPU kernels with levels, interpreted on a CPU, against the recurrence over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.common.dispatch import interpret_kernels
from pallas_kernels.linear_attention import pallas_tpu
from pallas_kernels.log_linear import LogLinearState, level_count, step_tpu
from tests.jax_internals import races_found
from tests.log_linear.cases import OPS, assert_close, inputs, part, run
from tests.log_linear.test_forms import values_and_gradients
from tests.marks import slow_unless

# Each takes seconds to compile.
FEW = slow_unless(("gated_delta_rule",), OPS)
# The delta rule's kernel does all that the other does, and erases.
LAST = slow_unless((), OPS, exhaustive=("ssd",))
TOLERANCES = {"y": 3e-6, "state": 3e-6, "g": 2e-5}


def check(op, x, tolerance=None, implementation="pallas_tpu", **settings):
    want = values_and_gradients(op, x, implementation="reference", **settings)
    with interpret_kernels():
        got = values_and_gradients(op, x, implementation=implementation, **settings)
    assert_close(got[0], want[0], tolerance or TOLERANCES["y"], "y")
    assert_close(got[1].levels, want[1].levels, tolerance or TOLERANCES["state"], "state")
    assert (np.asarray(got[1].length) == np.asarray(want[1].length)).all()
    for name, gradient in got[2].items():
        limit = tolerance or TOLERANCES.get(name, 5e-6)
        assert_close(gradient, want[2][name], limit, f"d{name}")


@pytest.mark.parametrize("op", FEW)
@pytest.mark.parametrize("length", slow_unless((), (2, 100, 700, 1300), exhaustive=(2, 700, 1300)))
def test_values_states_and_gradients(op, length):
    check(op, inputs(length, level_count(length) + 1, groups=1))


@pytest.mark.parametrize("op", LAST)
def test_longer_segments_of_many_levels(op, monkeypatch):
    """Two segments of eight chunks, as otherwise only states of more levels have."""
    monkeypatch.setattr(pallas_tpu, "_FEW_STATES", 0)
    check(op, inputs(1100, level_count(1100), groups=1, batch=1))


@pytest.mark.exhaustive
@pytest.mark.parametrize("op", LAST)
def test_strong_decay(op):
    x = inputs(400, 10, decay=3.0)
    x["g"][:, [5, 127, 128, 300]] = -1e3
    check(op, x)


@pytest.mark.parametrize("op", LAST)
@pytest.mark.parametrize("levels", slow_unless((3,), (9, 3), exhaustive=(9,)))
def test_beyond_the_last_level(op, levels):
    check(op, inputs(600, levels), beyond_levels="clamp")


@pytest.mark.parametrize("op", LAST)
def test_documents(op):
    segments = np.zeros((2, 420), np.int32)
    segments[0, :50], segments[0, 50:330], segments[0, 340:410] = 1, 2, 3
    segments[1, 3:420] = 7
    check(op, inputs(420, 10), segment_ids=segments, max_documents=3)


@pytest.mark.parametrize("op", LAST)
@pytest.mark.parametrize("begun", slow_unless((77,), (77, 300), exhaustive=(300,)))
def test_a_continued_state_is_the_whole(op, begun):
    x = inputs(700, 11)
    want, end = run(op, x, implementation="reference")
    _, state = run(op, part(x, 0, begun), implementation="reference")
    with interpret_kernels():
        y, got = run(op, part(x, begun, 700), initial_state=state, implementation="pallas_tpu")
    assert_close(y, want[:, begun:], 3e-6, "y")
    assert_close(got.levels, end.levels, 3e-6, "state")


@pytest.mark.parametrize("op", LAST)
def test_gradient_of_a_continued_state(op):
    """Of the levels that hold something; the kernels do not read the others."""
    x = inputs(700, 11)
    _, state = run(op, part(x, 0, 300), implementation="reference")

    def gradient(implementation):
        def loss(levels):
            begun = LogLinearState(levels, state.length)
            rest = part(x, 300, 700)
            y, end = run(op, rest, initial_state=begun, implementation=implementation)
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(end.levels))

        return jax.grad(loss)(state.levels)

    with interpret_kernels():
        got = gradient("pallas_tpu")
    held = np.any(np.asarray(state.levels), axis=(3, 4), keepdims=True)
    assert_close(got * held, gradient("reference") * held, 5e-6, "state")


@pytest.mark.parametrize(
    "implementation", slow_unless(("pallas_tpu",), ("pallas_tpu", "pallas_gpu"))
)
@pytest.mark.parametrize("op", FEW)
@pytest.mark.parametrize("begun", slow_unless((7,), (1, 7, 8, 31), exhaustive=(1, 8, 31)))
def test_a_single_token(op, begun, implementation):
    """One step from states of several lengths, and with all levels but three merged."""
    dims = (8, 6) if begun % 2 else (6, 8)  # keys or values on lanes
    x = inputs(32, 6, key_dim=dims[0], value_dim=dims[1])
    for settings in ({}, {"beyond_levels": "clamp"}):
        some = {**x, "level_scales": x["level_scales"][..., :3]} if settings else x
        _, state = run(op, part(some, 0, begun), implementation="reference", **settings)
        token = part(some, begun, begun + 1)
        check(op, token, initial_state=state, implementation=implementation, **settings)
        check(op, token, initial_state=state, segment_ids=np.int32([[1], [0]]),
              max_documents=1, implementation=implementation, **settings)  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.parametrize("op", OPS)
def test_bfloat16(op):
    x = inputs(260, 10)
    x |= {name: x[name].astype(jnp.bfloat16) for name in "qkv"}
    check(op, x, tolerance=1.5e-2)


@pytest.mark.parametrize("op", LAST)
def test_no_races(op):
    x = inputs(400, 10, batch=1)
    want, _ = run(op, x, implementation="reference")
    try:
        with interpret_kernels(pltpu.InterpretParams(detect_races=True)):
            got = values_and_gradients(op, x, implementation="pallas_tpu")
            jax.block_until_ready(got)
        assert not races_found()
    finally:
        pltpu.reset_tpu_interpret_mode_state()
    assert_close(got[0], want, 3e-6, "y")


@pytest.mark.parametrize("op", OPS)
def test_no_races_of_a_single_token(op):
    x = inputs(32, 6, key_dim=8, value_dim=6)
    _, state = run(op, part(x, 0, 7), implementation="reference")
    token = part(x, 7, 8)
    want, end = run(op, token, initial_state=state, implementation="reference")
    try:
        with interpret_kernels(pltpu.InterpretParams(detect_races=True)):
            got = run(op, token, initial_state=state, implementation="pallas_tpu")
            jax.block_until_ready(got)
        assert not races_found()
    finally:
        pltpu.reset_tpu_interpret_mode_state()
    assert_close(got[0], want, 3e-6, "y")
    assert_close(got[1].levels, end.levels, 3e-6, "state")


def test_states_of_a_token_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(step_tpu, "kernel_memory", lambda: 2**20)
    x = inputs(32, 6, key_dim=8, value_dim=7)  # traced anew
    _, state = run("ssd", part(x, 0, 7), implementation="reference")
    with (
        interpret_kernels(),
        pytest.raises(NotImplementedError, match=r"6 states of K=8, V=7 need 1\.\d MiB of vector"),
    ):
        run("ssd", part(x, 7, 8), initial_state=state, implementation="pallas_tpu")
