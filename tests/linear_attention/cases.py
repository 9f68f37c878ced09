"""The ops of the linear family as one table, their inputs, and how results are compared."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import delta_rule, gated_delta_rule, linear_attention, retention, ssd
from pallas_kernels.linear_attention import NormalizedState

OPS = {
    "linear_attention": (linear_attention, ("q", "k", "v")),
    "normalised": (partial(linear_attention, normalize=True), ("q", "k", "v")),
    "retention": (retention, ("q", "k", "v", "g")),
    "ssd": (ssd, ("q", "k", "v", "g")),
    "delta_rule": (delta_rule, ("q", "k", "v", "beta")),
    "gated_delta_rule": (gated_delta_rule, ("q", "k", "v", "g", "beta")),
}
TOLERANCE = 3e-6  # relative error of a float32 tensor
GATE_TOLERANCE = 2e-5  # of the gradient of g, a sum of large terms that cancel


class Case(NamedTuple):
    """Inputs by name, "state" among them, and cotangents of y and of the last state."""

    inputs: dict[str, Any]
    cotangents: tuple[Any, Any]


def make_case(op, length, batch=2, heads=4, groups=4, key_dim=5, value_dim=9, decay=0.2, seed=0):
    """Random float32; `decay` is the mean of -g. Every head of retention has a decay of its own."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape)

    q, k = normal(2, batch, length, groups, key_dim)
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    if op == "normalised":  # a feature map makes them positive
        q, k = np.abs(q), np.abs(k)
    gates = (heads,) if op == "retention" else (batch, length, heads)
    arrays = {
        "q": q,
        "k": k,
        "v": normal(batch, length, heads, value_dim),
        "g": -decay * rng.gamma(2.0, 0.5, gates),
        "beta": 2 / (1 + np.exp(-normal(batch, length, heads))),
    }
    inputs = {name: arrays[name] for name in OPS[op][1]}
    inputs["state"] = normal(batch, heads, key_dim, value_dim)
    state = normal(batch, heads, key_dim, value_dim)
    if op == "normalised":
        sums = np.abs(normal(2, batch, heads, key_dim))
        inputs["state"] = NormalizedState(inputs["state"], sums[0])
        state = NormalizedState(state, sums[1])
    cotangents = (normal(batch, length, heads, value_dim), state)
    return jax.tree.map(np.float32, Case(inputs, cotangents))


def apply(op, inputs, segments=None, **settings):
    """y and the last state."""
    function, names = OPS[op]
    inputs = jax.tree.map(jnp.asarray, inputs)
    return function(
        *(inputs[name] for name in names),
        initial_state=inputs.get("state"),
        return_state=True,
        segment_ids=segments,
        **settings,
    )


@partial(jax.jit, static_argnames=("op", "chunk_size", "implementation"))
def run(op, case, segments=None, chunk_size=64, implementation="chunked"):
    """{"y", "state", "d" + name of each input}."""
    (y, state), pull = jax.vjp(
        lambda inputs: apply(
            op, inputs, segments, chunk_size=chunk_size, implementation=implementation
        ),
        case.inputs,
    )
    dy, dstate = case.cotangents
    (gradients,) = pull((jnp.asarray(dy, y.dtype), dstate))
    return {"y": y, "state": state} | {f"d{name}": x for name, x in gradients.items()}


def run_float64(op, case, segments=None):
    """The oracle: token by token, in float64."""
    with jax.enable_x64(True):
        case = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), case)
        return jax.tree.map(np.asarray, run(op, case, segments, implementation="reference"))


def assert_close(got, wanted, tolerance=TOLERANCE, gates=GATE_TOLERANCE, what="", floor=0.0):
    """Relative errors of whole tensors; absolute ones where zeros are wanted.

    A norm less than `floor` counts as that.
    """
    assert got.keys() == wanted.keys()
    for name in wanted:
        leaves = (jax.tree.leaves(x[name]) for x in (got, wanted))
        for a, b in zip(*leaves, strict=True):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            error, limit = np.linalg.norm(a - b), tolerance if name != "dg" else gates
            limit *= max(np.linalg.norm(b), floor) or 1
            assert error <= limit, f"{what} {name}: off by {error:.1e}, allowed {limit:.1e}"


def assert_same(got, wanted, what=""):
    """Bit for bit."""
    jax.tree.map(partial(np.testing.assert_array_equal, err_msg=str(what)), got, wanted)
