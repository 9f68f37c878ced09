"""`python -m tests.common.sharded_screening IMPLEMENTATION [few]`: ops on eight devices and on one.

Ends with an error unless values and all gradients agree under every mesh, or under a few, and
prints what the compiled program exchanges between devices. A few go without bfloat16.
"""

import math
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
from tests.screening.decode_cases import make_case, unit
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
    ((1, 1, 4, 2), WINDOWS),  # with windows on other devices that reach less far
    ((1, 1, 3, 1), WINDOWS),
]
# Interpreted kernels take long. One device's share is the same op to them whatever divides it, so
# these show rows, heads, keys of several devices, and windows that differ between devices.
FEW_MESHES, FEW_DIVIDED = MESHES[:1], [DIVIDED[4]]
_COLLECTIVE = r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\("


def main(implementation: str, few: bool) -> None:
    whole, divided = (FEW_MESHES, FEW_DIVIDED) if few else (MESHES, DIVIDED)
    segments = jnp.asarray(make_segments(200, 4)[:, :LENGTH])
    op = partial(screening, implementation=implementation)

    @jax.jit
    def step(cotangent, segments, *x):
        def loss(*x):
            return jnp.sum(op(*x, segments) * cotangent)

        return jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))(*x)

    for windows in dict.fromkeys([WINDOWS, *(windows for _, windows in divided)]):
        inputs = make_inputs(
            LENGTH, windows=windows, batch=4, key_dim=16, value_dim=32, dtype=np.float32
        )
        *inputs, cotangent = (jnp.asarray(x) for x in inputs)
        inputs = cotangent, segments, *inputs
        expected = jax.device_get(step(*inputs))
        meshes = whole * (windows == WINDOWS) + [x for x, given in divided if given == windows]
        for sizes in meshes:
            with jax.set_mesh(make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])):
                text = step.lower(*inputs).compile().as_text()
                print(*sizes, *sorted(set(re.findall(_COLLECTIVE, text))))
                got = jax.device_get(step(*inputs))
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
    apart(op, *inputs[2:])
    with jax.set_mesh(make_mesh(2, 2, 1, 2)):
        eager = op(*inputs[2:], segments)
        np.testing.assert_allclose(eager, jax.jit(op)(*inputs[2:], segments), rtol=0, atol=1e-6)


def apart(op, q, k, v, window, width):
    """Keys and queries with a gap between them are not one sequence to be divided."""
    half = LENGTH // 2
    inputs = q[:, half:], k[:, :half], v[:, :half], window, width
    want = op(*inputs, gap=8)
    with jax.set_mesh(make_mesh(1, 1, 4, 2)):
        got = jax.jit(partial(op, gap=8))(*inputs)
        named = jax.jit(partial(screening, implementation=["chunked"]))(q, k, v, window, width)
    np.testing.assert_allclose(named, op(q, k, v, window, width), rtol=0, atol=1e-5)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def bfloat16(implementation: str) -> None:
    """Errors on eight devices are at most one and a half times those on one."""
    rng = np.random.default_rng(0)
    q, k = (unit(rng.standard_normal((2, 256, 2, 8)) + 1) for _ in range(2))
    v = unit(rng.standard_normal((2, 256, 2, 32)))
    dh = rng.standard_normal(v.shape)
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v, dh)]
    scalars = jnp.array([200.0, np.inf]), jnp.array([0.95, 0.9])

    def gradients(op, q, k, v, dh):
        h, pull = jax.vjp(op, q, k, v, *scalars)
        return h, *pull(dh)

    exact = gradients(
        partial(screening, implementation="reference"), *(x.astype(jnp.float32) for x in arrays)
    )
    op = partial(screening, implementation=implementation)
    errors = []
    for devices in (1, 8):
        with jax.set_mesh(make_mesh(1, 1, devices, 1, devices=jax.devices()[:devices])):
            got = jax.device_get(jax.jit(partial(gradients, op))(*arrays))
        errors.append(
            [
                np.linalg.norm(np.float64(a) - b) / np.linalg.norm(b)
                for a, b in zip(got, exact, strict=True)
            ]
        )
    for name, one, eight in zip(("h", "q", "k", "v", "window", "width"), *errors, strict=True):
        # Half the rounding of an input; the gradient of a window may be far more accurate.
        assert eight <= max(1.5 * one, 1e-3), (
            f"{name}: {eight:.1e} on eight devices, {one:.1e} on one"
        )


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
        main(sys.argv[1], "few" in sys.argv)
        if "few" not in sys.argv:
            bfloat16(sys.argv[1])
        decode(sys.argv[1])
