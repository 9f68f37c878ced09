"""Inverses of unit lower triangular matrices: accurate where powers of the matrix explode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.linear_attention.triangular import unit_lower_inverse, unit_lower_solve


def matrices(size, kind):
    rng = np.random.default_rng(size)
    full = {"equal": np.ones((2, size, size)), "random": rng.uniform(-1, 1, (2, size, size))}[kind]
    return np.float32(np.tril(full, -1) * [[[0.9]], [[1.9 if kind == "equal" else 0.3]]])


@pytest.mark.parametrize("kind", ["equal", "random"])
@pytest.mark.parametrize("size", [1, 2, 7, 16, 34, 64, 100, 256])
def test_inverse(size, kind):
    n = matrices(size, kind)
    wanted = np.linalg.inv(np.eye(size) + np.float64(n))
    got = jax.jit(unit_lower_inverse)(n)
    assert not np.triu(got, 1).any()
    error = np.linalg.norm(got - wanted, axis=(1, 2)) / np.linalg.norm(wanted, axis=(1, 2))
    assert error.max() <= 1e-5  # of the 256 x 256 matrices of 1.9; of others 1e-6


@pytest.mark.parametrize("size", [7, 64])
def test_gradients(size):
    """Those of a dense inverse; what lies on and above the diagonal of N has none."""
    n, rng = matrices(size, "random"), np.random.default_rng(0)
    r, cotangent = rng.standard_normal((2, 2, size, 5))
    with jax.enable_x64(True):
        n = jnp.asarray(n, "float64")

        def dense(n, r):
            return jnp.linalg.solve(jnp.eye(size) + jnp.tril(n, -1), r)

        def by_inverse(n, r):
            return unit_lower_inverse(n) @ r

        def direct(n, r):
            return unit_lower_solve(n, r, None)

        want, pull = jax.vjp(dense, n, r)
        wanted = (want, *pull(cotangent))
        for solve in (by_inverse, direct):
            x, pull = jax.vjp(solve, n, r)
            for a, b in zip((x, *pull(cotangent)), wanted, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())
