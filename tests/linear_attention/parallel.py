"""`python -m tests.linear_attention.parallel OP`: sequences divided among devices, and whole.

Ends with an error unless values, last states and all gradients agree.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.linear_attention import parallel
from tests.common.divided import TOKENS, WHOLE, check_exchanged, divide
from tests.linear_attention.cases import OPS, assert_close, assert_same, make_case, run

LENGTH = 96
ROWS = (  # in shards of 12 tokens
    # A document goes on after two shards of padding.
    [1] * 30 + [2] * 6 + [0] * 24 + [2] * 20 + [3] * 16,
    # The first one begins late and ends with a shard; the next is a whole shard; its id returns.
    [0] * 14 + [5] * 10 + [6] * 12 + [5] * 30 + [7] + [0] * 29,
    # One goes on, and one begins, where there is padding on either side of a border.
    [4] * 20 + [6] * 2 + [0] * 4 + [6] * 8 + [0] * 4 + [8] * 20 + [9] * 38,
    [0] * 96,
)


def apply(op, devices, inputs, segments=None, **settings):
    """y and the last state."""
    function = getattr(parallel, op.replace("normalised", "linear_attention"))
    if op == "normalised":
        function = partial(function, normalize=True)

    def local(inputs, segments):
        return function(
            *(inputs[name] for name in OPS[op][1]), axis_name="seq", return_state=True,
            initial_state=inputs.get("state"), segment_ids=segments, **settings,
        )  # fmt: skip

    specs = {x: WHOLE if x == "state" or a.ndim == 1 else TOKENS for x, a in inputs.items()}
    return divide(local, devices, (specs, TOKENS), (TOKENS, WHOLE))(inputs, segments)


@partial(jax.jit, static_argnames=("op", "devices"))
def run_divided(op, devices, case, segments=None):
    """Returns what `run` does, of the divided op."""
    (y, state), pull = jax.vjp(
        lambda inputs: apply(op, devices, inputs, segments, chunk_size=16), case.inputs
    )
    dy, dstate = case.cotangents
    (gradients,) = pull((jnp.asarray(dy, y.dtype), dstate))
    return {"y": y, "state": state} | {f"d{name}": x for name, x in gradients.items()}


def gathered(op, devices, batch=2, heads=4, key_dim=5, value_dim=9):
    """Numbers that the docstrings say every device gets."""
    values = {"normalised": value_dim + 1}.get(op, value_dim)
    per_head = key_dim * (values + key_dim) if "delta" in op else key_dim * values + 1
    return devices * batch * heads * per_head


def check_whole_rows(op):
    """The same programs for gates that forget at once."""
    case = make_case(op, LENGTH, groups=2)
    compiled = run_divided.lower(op, 4, case).compile()
    check_exchanged(compiled, gathered(op, 4), (LENGTH, LENGTH // 4))
    assert_close(jax.device_get(compiled(case)), run(op, case, implementation="reference"), what=op)
    if "g" in case.inputs:
        strong = dict(case.inputs)
        forget = np.random.default_rng(1).random(strong["g"].shape) < 0.2
        strong["g"] = np.where(forget, np.float32(-50), strong["g"])
        strong = case._replace(inputs=strong)
        got = jax.device_get(compiled(strong))
        assert_close(got, run(op, strong, implementation="reference"), what=f"{op}, strong decay")


def check_documents(op, groups):
    segments = np.int32(ROWS)
    case = make_case(op, LENGTH, batch=len(ROWS), groups=groups)
    got = jax.device_get(run_divided(op, 8, case, segments))
    assert_close(got, run(op, case, segments, implementation="reference"), what=f"{op}, documents")

    changed = segments == 2  # its shards hold documents before it and after it
    inputs = {
        x: a + changed.reshape(*changed.shape, *[1] * (a.ndim - 2)) * np.float32(-0.1)
        for x, a in case.inputs.items()
        if x != "state" and a.ndim > 2
    }
    other = case._replace(inputs=case.inputs | inputs)
    other = jax.device_get(run_divided(op, 8, other, segments))
    for x in ("y", *(f"d{x}" for x in inputs)):
        assert (got[x][changed] != other[x][changed]).any(), x
        assert_same(got[x][~changed], other[x][~changed], f"{op} {x} of other documents")


def check_bfloat16(op):
    """No further from the exact result than the whole sequence in bfloat16: y is rounded once, and
    gradients with respect to inputs that are used twice, twice."""
    case = make_case(op, LENGTH, groups=1)
    rounded = {x: jnp.asarray(a, jnp.bfloat16) if x in "qkv" else a for x, a in case.inputs.items()}
    exact = {x: jnp.asarray(a, jnp.float32) if x in "qkv" else a for x, a in rounded.items()}
    rounded, exact = case._replace(inputs=rounded), case._replace(inputs=exact)
    got, whole, wanted = run_divided(op, 2, rounded), run(op, rounded), run(op, exact)
    assert got["y"].dtype == jnp.bfloat16
    for x in wanted:
        a, b, c = (
            np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree[x])])
            for tree in (got, whole, wanted)
        )
        factor = 1.1 if x == "y" else 1.5
        limit = max(factor * np.linalg.norm(b - c), 2e-5 * np.linalg.norm(c))
        error = np.linalg.norm(a - c)
        assert error <= limit, f"{op} bfloat16 {x}: off by {error:.1e}, allowed {limit:.1e}"


def main(op):
    check_whole_rows(op)
    if op in ("normalised", "ssd", "gated_delta_rule"):  # the others take the same path
        check_documents(op, groups=4 if op == "normalised" else 1)
        check_bfloat16(op)


if __name__ == "__main__":
    main(sys.argv[1])
