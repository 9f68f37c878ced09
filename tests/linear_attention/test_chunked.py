"""The chunk form against the recurrence over tokens, in float64 where numbers are compared."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import linear_attention, retention
from tests.linear_attention.cases import (
    OPS,
    apply,
    assert_close,
    assert_same,
    make_case,
    run,
    run_float64,
)
from tests.marks import slow_unless

LENGTHS = (1, 2, 7, 63, 64, 65, 200, 257, 1000)
SIZES = (16, 32, 64, 128, 256)
LONGEST = max(LENGTHS)
FEW = ("ssd", "gated_delta_rule")  # the two chunk forms
GROUPED = slow_unless((("gated_delta_rule", 4),), (("ssd", 2), ("gated_delta_rule", 4)))


@functools.cache
def recurrence(op, groups):
    """`make_case` at the longest length, and a function of the length: case and oracle.

    The oracle always runs over the longest, what is too much being padding: one compilation.
    """
    full = make_case(op, LONGEST, groups=groups)

    def cut(length):
        def shorten(x):
            return x[:, :length] if x.ndim > 1 and x.shape[1] == LONGEST else x

        real = np.int32(np.arange(LONGEST) < length)
        wanted = run_float64(op, full, np.broadcast_to(real, (2, LONGEST)))
        return jax.tree.map(shorten, (full, wanted))

    return cut


@pytest.mark.parametrize(
    "length", slow_unless((1, 7, 65, 200), LENGTHS, exhaustive=(2, 63, 64, 257))
)
@pytest.mark.parametrize(("op", "groups"), GROUPED)
def test_all_lengths(op, groups, length):
    case, wanted = recurrence(op, groups)(length)
    assert_close(run(op, case), wanted)


@pytest.mark.parametrize("size", slow_unless((16, 256), SIZES, exhaustive=(32, 64, 128)))
@pytest.mark.parametrize(("op", "groups"), GROUPED)
def test_all_chunk_sizes(op, groups, size):
    case, wanted = recurrence(op, groups)(257)
    assert_close(run(op, case, chunk_size=size), wanted, what=f"C={size}")


@pytest.mark.parametrize("groups", slow_unless((1,), (1, 2), exhaustive=(2,)))
@pytest.mark.parametrize("op", slow_unless(("normalised", *FEW[1:]), OPS))
def test_all_ops_share_keys_in_groups(op, groups):
    case = make_case(op, 70, groups=groups)
    wanted = run_float64(op, case)
    for implementation in ("reference", "chunked"):
        assert_close(run(op, case, implementation=implementation), wanted, what=implementation)


@pytest.mark.parametrize("op", slow_unless(FEW, ("retention", *FEW)))
def test_strong_decay(op):
    case = make_case(op, 200, decay=3.0)
    wanted = run_float64(op, case)
    got = run(op, case)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
    assert_close(got, wanted)


@pytest.mark.parametrize("op", FEW)
def test_gates_that_forget_everything(op):
    """exp(g) = 0 at some tokens, by g = -inf and by g = -1e4."""
    case = make_case(op, 200, decay=0.1)
    g = case.inputs["g"]
    g[:, [0, 40, 64, 199]] = -1e4
    wanted = run_float64(op, case)
    got = run(op, case)
    assert_close(got, wanted)
    g[g == -1e4] = -np.inf
    assert_same(run(op, case), got)


@pytest.mark.parametrize("beta", slow_unless((1.9,), (1.0, 1.9)))
def test_keys_that_are_all_alike(beta):
    """The triangular systems of such chunks are the hardest: powers of their matrices explode."""
    case = make_case("gated_delta_rule", 200, decay=0.01)
    case.inputs["k"] = np.broadcast_to(case.inputs["k"][:, :1], case.inputs["k"].shape)
    case.inputs["beta"] = np.full_like(case.inputs["beta"], beta)
    wanted = run_float64("gated_delta_rule", case)
    for size in (64, 256):
        got = run("gated_delta_rule", case, chunk_size=size)
        # The condition number of the systems, C = 256, beta = 1.9, is about 10,000.
        assert_close(got, wanted, 3e-5, 1e-4, f"C={size}")


@pytest.mark.parametrize("op", slow_unless(FEW, OPS))
def test_no_information_from_the_future_in_bfloat16(op):
    case = make_case(op, 200)
    inputs = case.inputs | {x: case.inputs[x].astype(jnp.bfloat16) for x in "qkv"}
    forward = jax.jit(lambda inputs: apply(op, inputs)[0])
    y = np.asarray(forward(inputs))
    assert y.dtype == jnp.bfloat16

    def change(x, t):
        x = x.copy()
        x[:, t] = -2 * x[:, t - 1] + 0.5
        return x

    for t in (1, 63, 64, 130, 199):
        changed = {
            name: x if name == "state" or x.ndim == 1 else change(x, t)
            for name, x in inputs.items()
        }
        again = np.asarray(forward(changed))
        np.testing.assert_array_equal(again[:, :t], y[:, :t])
        assert (again[:, t] != y[:, t]).any()


@pytest.mark.parametrize("op", slow_unless(FEW[1:], ("normalised", *FEW)))
def test_transformations(op):
    """vmap over the batch, checkpoint, and a scan over layers: the same values and gradients."""
    case = make_case(op, 70)
    case.inputs.pop("state")

    def one(inputs):
        return apply(op, jax.tree.map(lambda x: x[None], inputs))[0][0]

    def whole(inputs):
        return apply(op, inputs)[0]

    def stacked(mixer, inputs):
        layer = jax.checkpoint(lambda v, scale: (v + scale * mixer({**inputs, "v": v}), None))
        return jax.lax.scan(layer, inputs["v"], jnp.array([0.5, 0.2]))[0]

    results = []
    for mixer in (whole, jax.vmap(one)):
        y, pull = jax.vjp(jax.jit(functools.partial(stacked, mixer)), case.inputs)
        results.append({"y": y} | pull(case.cotangents[0])[0])
    assert_close(results[1], results[0], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("op", slow_unless(FEW[:1], FEW))
def test_memory_is_linear(op):
    def bytes_for(length):
        case = make_case(op, 8, batch=1, groups=4, key_dim=64, value_dim=64)
        case = jax.tree.map(
            lambda x: (
                jax.ShapeDtypeStruct((1, length, *x.shape[2:]), x.dtype) if x.shape[1] == 8 else x
            ),
            case,
        )
        return run.lower(op, case).compile().memory_analysis().temp_size_in_bytes

    short, long = bytes_for(4096), bytes_for(16384)
    assert long <= 4.1 * short
    assert long <= 16384 * 4 * (64 * 4 + 2) * 4 * 2  # a few times the inputs, not C of them


@pytest.mark.slow
def test_float64_stays_float64():
    case = make_case("gated_delta_rule", 70)
    wanted = run_float64("gated_delta_rule", case)
    with jax.enable_x64(True):
        case = jax.tree.map(lambda x: jnp.asarray(x, "float64"), case)
        assert_close(run("gated_delta_rule", case), wanted, 1e-13, 1e-13)


@pytest.mark.slow
def test_forward_mode():
    case = make_case("gated_delta_rule", 70)
    got = run("gated_delta_rule", case)
    tangents = jax.tree.map(
        lambda x: np.cos(np.arange(x.size, dtype=x.dtype)).reshape(x.shape), case
    )
    _, dy = jax.jvp(
        jax.jit(lambda x: apply("gated_delta_rule", x)), (case.inputs,), (tangents.inputs,)
    )
    forward = sum(np.vdot(a, b) for a, b in zip(dy, case.cotangents, strict=True))
    backward = sum(np.vdot(got[f"d{name}"], x) for name, x in tangents.inputs.items())
    np.testing.assert_allclose(forward, backward, rtol=1e-4)


@pytest.mark.parametrize("op", OPS)
def test_default_scale(op):
    """K^-0.5, but 1 for ssd."""
    case = make_case(op, 7)
    scale = 1.0 if op == "ssd" else 5**-0.5
    assert_same(apply(op, case.inputs), apply(op, case.inputs, scale=scale))


def test_normalised_bfloat16_is_rounded_once():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.uniform(size=(2, 40, 2, 8)), jnp.bfloat16) for _ in range(3))
    y, _ = linear_attention(q, k, v, normalize=True)
    wide = (x.astype(jnp.float32) for x in (q, k, v))
    want, _ = linear_attention(*wide, normalize=True)
    np.testing.assert_array_equal(y, want.astype(jnp.bfloat16))


@pytest.mark.slow
def test_retentions_own_decays_are_as_wide_as_its_inputs():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 130, 3, 4)))
        rates = jnp.asarray(np.log1p(-(2.0 ** (-5 - np.arange(3)))))
        np.testing.assert_array_equal(retention(x, x, x)[0], retention(x, x, x, rates)[0])
