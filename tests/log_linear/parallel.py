"""`python -m tests.log_linear.parallel OP`: sequences divided among devices, and whole.

Ends with an error unless values, last states and all gradients agree.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.log_linear import parallel
from tests.common.divided import TOKENS, WHOLE, check_exchanged, divide
from tests.log_linear import cases

SHARE = 16  # tokens of a device; no other axis is as long


def apply(op, devices, x, **settings):
    """y and the last state; `beta` is not used by SSD."""
    function = getattr(parallel, f"log_linear_{op}")

    def local(x):
        x = {name: value for name, value in x.items() if op != "ssd" or name != "beta"}
        return function(**x, axis_name="seq", return_state=True, **settings)

    return divide(local, devices, (TOKENS,), (TOKENS, WHOLE))(x)


@partial(jax.jit, static_argnames=("op", "devices"))
def run(op, devices, x):
    """{"y", "levels", "length", "d" + name of each input}; on one device by the reference."""

    def outputs(x):
        if devices == 1:
            y, state = cases.run(op, x, scale=0.7, implementation="reference")
        else:
            y, state = apply(op, devices, x, scale=0.7, chunk_size=8)
        return {"y": y, "levels": state.levels}, state.length

    out, pull, length = jax.vjp(outputs, x, has_aux=True)
    (gradients,) = pull(jax.tree.map(_waves, out))
    return out | {"length": length} | {f"d{name}": value for name, value in gradients.items()}


def _waves(x):
    return jnp.cos(jnp.arange(x.size)).reshape(x.shape).astype(x.dtype)


def assert_close(got, wanted, what):
    assert got.keys() == wanted.keys()
    for name in wanted:
        tolerance = 2e-5 if name == "dg" else 3e-6
        cases.assert_close(got[name], wanted[name], tolerance, f"{what} {name}")


def check_gradients(op, devices):
    """The same programs for gates that forget at once."""
    length = devices * SHARE
    x = cases.inputs(length, 9, heads=4, groups=1)
    compiled = run.lower(op, devices, x).compile()
    batch, _, heads, value_dim = x["v"].shape
    key_dim = x["k"].shape[-1]
    state = key_dim * (value_dim + key_dim) if "delta" in op else key_dim * value_dim + 1
    check_exchanged(compiled, devices * batch * heads * state, (length, SHARE))
    assert_close(jax.device_get(compiled(x)), run(op, 1, x), op)
    forget = np.random.default_rng(1).random(x["g"].shape) < 0.2
    strong = x | {"g": np.where(forget, np.float32(-50), x["g"])}
    assert_close(jax.device_get(compiled(strong)), run(op, 1, strong), f"{op}, strong decay")


def check_levels(op, devices, beyond_levels, levels):
    x = cases.inputs(devices * SHARE, levels)
    got = jax.jit(lambda x: apply(op, devices, x, beyond_levels=beyond_levels, chunk_size=8))(x)
    wanted = cases.run(op, x, beyond_levels=beyond_levels, implementation="reference")
    for a, b, name in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), "yst", strict=True):
        cases.assert_close(a, b, 3e-6, f"{op} {beyond_levels} {name}")


def check_bfloat16(op):
    """No further from the exact result than the whole sequence in bfloat16: y is rounded once, and
    gradients with respect to inputs that are used twice, twice."""
    x = cases.inputs(2 * SHARE, 6, groups=1)
    rounded = {n: v if n in ("g", "beta") else jnp.asarray(v, jnp.bfloat16) for n, v in x.items()}
    exact = {n: jnp.asarray(v, jnp.float32) for n, v in rounded.items()}
    got, whole, wanted = run(op, 2, rounded), run(op, 1, rounded), run(op, 1, exact)
    assert got["y"].dtype == jnp.bfloat16
    for name in wanted:
        factor = 1.1 if name == "y" else 1.5
        limit = max(factor * cases.relative(whole[name], wanted[name]), 2e-5)
        cases.assert_close(got[name], wanted[name], limit, f"{op} bfloat16 {name}")


def main(op):
    check_gradients(op, 4)
    check_levels(op, 6, "error", 9)
    if op == "ssd":
        check_levels(op, 8, "clamp", 3)  # which a device's own tokens fill
    else:
        check_levels(op, 8, "extend", 6)
    check_bfloat16(op)


if __name__ == "__main__":
    main(sys.argv[1])
