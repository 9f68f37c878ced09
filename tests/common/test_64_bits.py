"""Kernels with JAX_ENABLE_X64, where Python's numbers are 64 bits wide: they are as without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from pallas_kernels import (
    gated_delta_rule,
    interpret_kernels,
    log_linear_gated_delta_rule,
    log_linear_ssd,
    screening,
    ssd,
)
from pallas_kernels.log_linear import LogLinearState
from pallas_kernels.screening import screening_decode
from tests.marks import slow_unless
from tests.screening.decode_cases import make_case

KERNELS = ("pallas_tpu", "pallas_gpu")
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32) / 4


# What is not a query, a key or a value comes in the widest kinds there are.
Q, K, V = normal(1, 70, 2, 16), normal(1, 70, 2, 16), normal(1, 70, 2, 32)
GATE, LEVELS = np.full((1, 70, 2), -0.1), np.full((1, 70, 2, 8), 0.7)
IDS = np.repeat([[1, 2]], [30, 40], axis=1)
HEADS = (np.array([20.0, 3.0]), np.array([0.9, 0.5]))


def wide(*arrays):
    return tuple(jnp.asarray(x) for x in arrays)


def packed_screening(q, k, v, **i):
    return screening(q, k, v, *wide(*HEADS, IDS), **i)


def packed_ssd(q, k, v, **i):
    return ssd(q, k, v, *wide(GATE), segment_ids=wide(IDS)[0], return_state=True, **i)


def packed_delta(q, k, v, **i):
    (gate,) = wide(GATE)
    return gated_delta_rule(q, k, v, gate, -gate, segment_ids=wide(IDS)[0], return_state=True, **i)


def packed_levels(q, k, v, **i):
    gate, levels = wide(GATE, LEVELS)
    packed = {"segment_ids": wide(IDS)[0], "max_documents": 2, "return_state": True}
    return log_linear_gated_delta_rule(q, k, v, gate, -gate, levels, **packed, **i)


def step(q, k, v, **i):
    token = (x[:, :1] for x in (q, k, v, *wide(GATE, LEVELS)))
    state = LogLinearState(*wide(np.zeros((1, 2, 8, 16, 32)), np.array([5])))
    return log_linear_ssd(*token, initial_state=state, return_state=True, **i)


OPS = {f.__name__: f for f in (packed_screening, packed_ssd, packed_delta, packed_levels, step)}


def gradients(name, implementation):
    def loss(*arrays):
        results = jax.tree.leaves(OPS[name](*arrays, implementation=implementation))
        return sum(jnp.sum(x**2) for x in results if jnp.issubdtype(x.dtype, jnp.floating))

    return jax.value_and_grad(loss, (0, 1, 2))


def kernels(jaxpr):
    """The calls of kernels in a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
        else:
            for inner in jaxprs_in_params(equation.params):
                yield from kernels(inner)


def widths(jaxpr):
    """Bits of every number in a program."""
    for equation in jaxpr.eqns:
        for x in (*equation.invars, *equation.outvars):
            if hasattr(x.aval, "dtype") and hasattr(x.aval.dtype, "itemsize"):
                yield 8 * x.aval.dtype.itemsize
        for inner in jaxprs_in_params(equation.params):
            yield from widths(inner)


def check_width(program, least):
    found = list(kernels(program.jaxpr))
    assert len(found) >= least
    for call in found:
        assert {8 * x.aval.dtype.itemsize for x in (*call.invars, *call.outvars)} <= {16, 32}
        assert max(widths(call.params["jaxpr"])) <= 32
        for mapping in call.params["grid_mapping"].block_mappings:
            assert max(widths(mapping.index_map_jaxpr.jaxpr), default=0) <= 32


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize("name", slow_unless(("packed_screening", "packed_ssd", "step"), OPS))
def test_no_kernel_has_a_wide_number(name, implementation):
    with jax.enable_x64(True), interpret_kernels():
        program = jax.make_jaxpr(gradients(name, implementation))(*wide(Q, K, V))
    check_width(program, 1 if name == "step" else 2)


@pytest.mark.parametrize("implementation", KERNELS)
def test_neither_has_decoding(implementation):
    case = make_case((70, 3), (17.0, np.inf), (0.5, 0.9), dims=(16, 16))
    q, keys, values, *numbers = (np.asarray(x) for x in case.arguments)
    numbers = [x.astype(np.int64 if x.dtype.kind == "i" else np.float64) for x in numbers]
    with jax.enable_x64(True), interpret_kernels():
        program = jax.make_jaxpr(
            lambda *arrays: screening_decode(*arrays, implementation=implementation)
        )(q, keys, values, *numbers)
    check_width(program, 1)


def test_values_are_those_without():
    arrays = [jnp.asarray(x) for x in (Q, K, V)]
    with interpret_kernels():
        wanted = jax.jit(gradients("step", "pallas_gpu"))(*arrays)
        with jax.enable_x64(True):
            got = jax.jit(gradients("step", "pallas_gpu"))(*arrays)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, wanted)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
