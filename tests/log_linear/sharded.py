"""`python -m tests.log_linear.sharded`: the log-linear ops on eight devices and on one.

Ends with an error unless values, last states and all gradients agree under every mesh, and prints
what the compiled programs exchange between devices.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from multiscreen_jax.sharding import make_mesh
from tests.common.shares import check_divided
from tests.log_linear import cases

_ROW = np.int32([1] * 20 + [2] * 30 + [0] * 5 + [3] * 15)
IDS = np.stack([np.roll(_ROW, 5 * n) for n in range(4)])  # no row is like another
BEFORE = np.int32([0, 5, 32, 41])  # tokens that the rows' initial states hold
# op, groups, with an initial state, packed; meshes of data, fsdp, seq, model. Rows and heads are 4:
# eight do not divide either of them, and four do not divide two groups.
CASES = [
    ("ssd", 1, True, True, [(2, 2, 1, 2), (1, 1, 1, 8)]),
    # With seq, the shares of 35 tokens are no power of two, so sequences stay whole.
    ("ssd", 4, False, False, [(2, 2, 1, 2), (2, 1, 2, 2)]),
    ("gated_delta_rule", 2, False, True, [(2, 2, 1, 2), (1, 2, 1, 4)]),
    ("gated_delta_rule", 4, True, False, [(1, 2, 1, 4)]),
]
_COLLECTIVE = r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\("


@partial(jax.jit, static_argnames="op")
def run(op, x, state, ids):
    """{"y", "d" + name of each input}; with a state also the last "levels" and "length"."""

    def apply(x):
        start = None if state is None else state._replace(levels=x["levels"])
        y, last = cases.run(
            op, {name: value for name, value in x.items() if name != "levels"},
            initial_state=start, return_state=start is not None, segment_ids=ids,
            max_documents=4, chunk_size=16,
        )  # fmt: skip
        out = {"y": y} if last is None else {"y": y, "levels": last.levels}
        return out, {} if last is None else {"length": last.length}

    x = x if state is None else {**x, "levels": state.levels}
    out, pull, rest = jax.vjp(apply, x, has_aux=True)
    (gradients,) = pull(jax.tree.map(lambda z: jnp.cos(jnp.arange(z.size)).reshape(z.shape), out))
    return out | rest | {f"d{name}": value for name, value in gradients.items()}


def states(op, **sizes):
    """After the first BEFORE tokens of other documents."""
    past = cases.inputs(int(BEFORE.max()), 8, seed=1, **sizes)
    ids = np.int32(np.arange(BEFORE.max()) < BEFORE[:, None])
    return cases.run(op, past, segment_ids=ids, max_documents=1, implementation="reference")[1]


def main() -> None:
    for op, groups, continued, packed, meshes in CASES:
        ids = IDS if packed else None
        sizes = {"batch": 4, "heads": 4, "groups": groups}
        x = cases.inputs(len(_ROW), 8, **sizes)
        state = states(op, **sizes) if continued else None
        wanted = jax.device_get(run(op, x, state, ids))
        for mesh in meshes:
            with jax.set_mesh(make_mesh(*mesh)):
                compiled = run.lower(op, x, state, ids).compile()
                result = compiled(x, state, ids)
            check_divided(result["y"], mesh, groups)
            got = jax.device_get(result)
            exchanged = sorted(set(re.findall(_COLLECTIVE, compiled.as_text())))
            print(op, groups, mesh, *exchanged)
            assert got.keys() == wanted.keys()
            for name in wanted:
                tolerance = 2e-5 if name == "dg" else 3e-6
                cases.assert_close(got[name], wanted[name], tolerance, f"{op} {mesh} {name}")


if __name__ == "__main__":
    main()
