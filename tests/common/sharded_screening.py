"""`python -m tests.common.sharded_screening IMPLEMENTATION`: the ops on eight devices and on one.

Ends with an error unless values and all gradients agree under every mesh, and prints what the
compiled program exchanges between devices.
"""

import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from multiscreen_jax.sharding import make_mesh
from pallas_kernels import interpret_kernels, screening
from pallas_kernels.screening import screening_decode
from pallas_kernels.screening.summaries import summarize
from tests.screening.decode_cases import make_case
from tests.screening.test_chunked import make_inputs, make_segments

LENGTH, WINDOWS = 72, (1.5, 17, 30, np.inf)
# data, fsdp, seq, model. Heads are 4 and rows 4: eight do not divide either of them.
MESHES = [(2, 2, 1, 2), (1, 4, 1, 2), (1, 2, 1, 4), (1, 1, 1, 8), (8, 1, 1, 1)]
# And with windows of which all end among the tokens of the device before, or not; with nine tokens
# a device, one that reaches a single token five devices before (accepted: that width is large),
# and all of them.
DIVIDED = [
    ((4, 1, 2, 1), (1.5, 17, 30, 37)),
    ((1, 2, 2, 2), WINDOWS),
    ((1, 1, 8, 1), (1.5, 17, 38, 30)),
    ((1, 1, 8, 1), WINDOWS),
]
_COLLECTIVE = r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\("


def main(implementation: str) -> None:
    segments = jnp.asarray(make_segments(200, 4)[:, :LENGTH])
    op = partial(screening, implementation=implementation)

    @jax.jit
    def step(cotangent, segments, *x):
        def loss(*x):
            return jnp.sum(op(*x, segments) * cotangent)

        return jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))(*x)

    for windows in dict.fromkeys([WINDOWS, *(windows for _, windows in DIVIDED)]):
        inputs = make_inputs(
            LENGTH, windows=windows, batch=4, key_dim=16, value_dim=32, dtype=np.float32
        )
        *inputs, cotangent = (jnp.asarray(x) for x in inputs)
        inputs = cotangent, segments, *inputs
        expected = jax.device_get(step(*inputs))
        meshes = MESHES * (windows == WINDOWS) + [x for x, given in DIVIDED if given == windows]
        for sizes in meshes:
            with jax.set_mesh(make_mesh(*sizes)):
                text = step.lower(*inputs).compile().as_text()
                print(*sizes, *sorted(set(re.findall(_COLLECTIVE, text))))
                got = jax.device_get(step(*inputs))
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
    with jax.set_mesh(make_mesh(2, 2, 1, 2)):
        eager = op(*inputs[2:], segments)
        np.testing.assert_allclose(eager, jax.jit(op)(*inputs[2:], segments), rtol=0, atol=1e-6)


def decode(implementation: str) -> None:
    case = make_case((300, 40, 7, 0), (17.0, np.inf), (0.5, 0.3))
    for summaries in (None, summarize(case.arguments[1])):
        op = partial(screening_decode, summaries=summaries, implementation=implementation)
        with jax.set_mesh(make_mesh(2, 2, 1, 2)):
            got = jax.jit(op)(*case.arguments)
        rows, queries, heads, values = case.want.shape
        shares = {shard.data.shape for shard in got.addressable_shards}
        assert shares == {(rows // 4, queries, heads // 2, values)}, shares
        np.testing.assert_allclose(got, case.want, rtol=0, atol=1e-4)


if __name__ == "__main__":
    with interpret_kernels():
        main(sys.argv[1])
        decode(sys.argv[1])
