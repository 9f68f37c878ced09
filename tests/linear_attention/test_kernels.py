"""The TPU kernels, interpreted on a CPU, against the recurrence over tokens in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.common.dispatch import interpret_kernels, record_choices
from pallas_kernels.linear_attention import pallas_tpu, tpu_walk
from pallas_kernels.linear_attention.pallas_tpu import backward_plan, make_plan
from tests.jax_internals import races_found
from tests.linear_attention.cases import (
    apply,
    assert_close,
    assert_same,
    make_case,
    run,
    run_float64,
)
from tests.marks import slow_unless

OPS = ("ssd", "gated_delta_rule")
FEW = slow_unless(("gated_delta_rule",), OPS)  # each takes seconds to compile
# The delta rule's kernel does all that the other does, and erases.
LAST = slow_unless((), OPS, exhaustive=("ssd",))
BFLOAT16 = 1e-2


def interpreted(op, case, segments=None, implementation="pallas_tpu"):
    with interpret_kernels():
        return run(op, case, segments, implementation=implementation)


@pytest.mark.parametrize("length", slow_unless((300,), (2, 300, 700), exhaustive=(2, 700)))
@pytest.mark.parametrize(
    ("op", "groups"),
    slow_unless(
        (("gated_delta_rule", 4),),
        (("ssd", 1), ("ssd", 4), ("gated_delta_rule", 4)),
        exhaustive=(("ssd", 1),),
    ),
)
def test_values_and_gradients(op, groups, length):
    case = make_case(op, length, groups=groups)
    assert_close(interpreted(op, case), run_float64(op, case))


@pytest.mark.parametrize(
    ("op", "groups"),
    slow_unless(
        (),
        (("gated_delta_rule", 1), ("delta_rule", 2), ("ssd", 2)),
        exhaustive=(("delta_rule", 2), ("ssd", 2)),
    ),
)
def test_groups(op, groups):
    """Other ops, and more lengths, are in the goldens."""
    case = make_case(op, 150, groups=groups)
    assert_close(interpreted(op, case), run_float64(op, case))


@pytest.mark.exhaustive
@pytest.mark.parametrize("op", OPS)
def test_bfloat16(op):
    case = make_case(op, 300)
    inputs = case.inputs | {x: jnp.asarray(case.inputs[x], jnp.bfloat16) for x in "qkv"}
    case = case._replace(inputs=inputs)
    got = interpreted(op, case)
    assert got["y"].dtype == got["dq"].dtype == jnp.bfloat16
    assert got["state"].dtype == got["dg"].dtype == jnp.float32
    assert_close(got, run_float64(op, case), BFLOAT16, BFLOAT16)


@pytest.mark.parametrize("op", LAST)
def test_strong_decay(op):
    """Total decays of exp(-1000) in a chunk, and gates that forget everything."""
    case = make_case(op, 300, decay=8.0)
    case.inputs["g"][:, [0, 40, 127, 128, 200]] = -1e4
    wanted = run_float64(op, case)
    got = interpreted(op, case)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
    assert_close(got, wanted)


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu"])
@pytest.mark.parametrize("op", LAST)
def test_tokens_after_many_strong_gates_in_bfloat16(op, implementation):
    """Sums of gates are large by then; what is left between later tokens is not theirs to round."""
    case = make_case(op, 128, decay=0.3)
    case.inputs["g"][:, :64] = -np.inf
    inputs = case.inputs | {x: jnp.asarray(case.inputs[x], jnp.bfloat16) for x in "qkv"}
    got = interpreted(op, case._replace(inputs=inputs), implementation=implementation)
    exact = {x: np.asarray(a, np.float32) for x, a in inputs.items()}
    wanted = run_float64(op, case._replace(inputs=exact))
    assert_close({"y": got["y"]}, {"y": wanted["y"]}, BFLOAT16)


@pytest.mark.parametrize("op", LAST)
def test_keys_that_are_all_alike(op):
    case = make_case(op, 200, decay=0.01)
    case.inputs["k"] = np.broadcast_to(case.inputs["k"][:, :1], case.inputs["k"].shape)
    assert_close(interpreted(op, case), run_float64(op, case), 3e-5, 1e-4)


@pytest.mark.parametrize("op", LAST)
def test_documents(op):
    """Documents give what the recurrence gives, and none changes a bit of another."""
    case = make_case(op, 400, decay=0.5)
    segments = np.zeros((2, 400), np.int32)
    for number, (start, stop) in enumerate([(0, 50), (50, 200), (205, 300), (300, 390)]):
        segments[:, start:stop] = number + 1
    got = interpreted(op, case, segments)
    assert_close(got, run_float64(op, case, segments))
    changed = jax.tree.map(np.copy, case)
    for name in "qkvg":
        changed.inputs[name][:, 50:200] *= 3
    other = interpreted(op, changed, segments)
    for name in ("y", "dq", "dk", "dv", "dg"):
        for here in (slice(0, 50), slice(205, 390)):
            assert_same(got[name][:, here], other[name][:, here], name)


@pytest.mark.parametrize("op", LAST)
def test_no_token_sees_the_future(op):
    case = make_case(op, 300)
    inputs = case.inputs | {x: jnp.asarray(case.inputs[x], jnp.bfloat16) for x in "qkv"}

    @jax.jit
    def forward(inputs):
        return apply(op, inputs, implementation="pallas_tpu")[0]

    with interpret_kernels():
        y = forward(inputs)
        for t in (1, 127, 128, 250):
            later = {name: jnp.asarray(x) for name, x in inputs.items()}
            for name, factor in {"q": 2, "k": -1, "v": -3, "g": 0.5}.items():
                later[name] = later[name].at[:, t:].multiply(factor)
            assert_same(forward(later)[:, :t], y[:, :t], t)


@pytest.mark.slow
def test_a_continued_state_is_the_whole():
    case = make_case("gated_delta_rule", 140)
    whole = interpreted("gated_delta_rule", case)
    first, second = (
        {name: x if name == "state" else x[:, part] for name, x in case.inputs.items()}
        for part in (slice(0, 77), slice(77, 140))
    )
    with interpret_kernels():
        y1, state = apply("gated_delta_rule", first, implementation="pallas_tpu")
        y2, state = apply(
            "gated_delta_rule", second | {"state": state}, implementation="pallas_tpu"
        )
    got = {"y": jnp.concatenate([y1, y2], axis=1), "state": state}
    assert_close(got, {name: whole[name] for name in got})


@pytest.mark.exhaustive
def test_vmap():
    case = make_case("ssd", 20, batch=3)
    wanted = interpreted("ssd", case)["y"]
    inputs = jax.tree.map(lambda x: jnp.asarray(x)[:, None], case.inputs)
    with interpret_kernels():
        got = jax.vmap(lambda x: apply("ssd", x, implementation="pallas_tpu")[0])(inputs)
    np.testing.assert_allclose(got[:, 0], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("op", LAST)
def test_no_races(op):
    case = make_case(op, 300, batch=1, heads=2, groups=2)
    wanted = run_float64(op, case)
    try:
        with interpret_kernels(pltpu.InterpretParams(detect_races=True)):
            got = jax.block_until_ready(run(op, case, implementation="pallas_tpu"))
        assert not races_found()
    finally:
        pltpu.reset_tpu_interpret_mode_state()
    assert_close(got, wanted)


def test_large_states_are_refused():
    case = make_case("ssd", 2, batch=1, heads=1, groups=1, key_dim=2048, value_dim=2048)
    with (
        interpret_kernels(),
        pytest.raises(NotImplementedError, match=r"need \d+\.\d MiB of vector memory, and kernels"),
    ):
        apply("ssd", case.inputs, implementation="pallas_tpu")


@pytest.mark.parametrize(
    ("mebibytes", "segment", "heads", "heads_back"),
    [(100, 8, 2, 1), (60, 8, 2, 1), (48, 4, 2, 1), (32, 2, 1, 1), (16, None, None, None)],
)
def test_plans_take_what_vector_memory_has(mebibytes, segment, heads, heads_back, monkeypatch):
    """Of log-linear Gated DeltaNet 800M at 131072 tokens."""
    monkeypatch.setattr(pallas_tpu, "kernel_memory", lambda: mebibytes * 2**20)
    kind = {"delta": True, "levels": True, "packed": False, "exact": False}
    sizes = (1, 131072, 6, 6, 192, 384, 10)
    if segment is None:
        with pytest.raises(NotImplementedError, match=r"kernels may use 16\.0 MiB"):
            make_plan(*sizes, **kind)
        return
    plan = make_plan(*sizes, **kind)
    assert (plan.segment, plan.block, backward_plan(plan).block) == (segment, heads, heads_back)
    assert tpu_walk.memory(plan, "forward") <= mebibytes * 2**20
    assert tpu_walk.memory(backward_plan(plan), "backward") <= mebibytes * 2**20


def test_float64_is_refused_and_the_default_falls_back():
    with jax.enable_x64(True), interpret_kernels():
        inputs = jax.tree.map(lambda x: np.asarray(x, np.float64), make_case("ssd", 5).inputs)
        with pytest.raises(NotImplementedError, match="float32 or bfloat16, got float64"):
            apply("ssd", inputs, implementation="pallas_tpu")
        with record_choices() as choices:
            apply("ssd", inputs, implementation=("pallas_tpu", "chunked"))
    assert choices == {"ssd": {"chunked"}}
