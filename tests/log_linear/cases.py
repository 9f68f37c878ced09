"""Random inputs of the log-linear ops, and both ops behind one call."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import log_linear_gated_delta_rule, log_linear_ssd

OPS = ("ssd", "gated_delta_rule")


def inputs(
    length, levels, *, seed=0, batch=2, heads=2, groups=2, key_dim=8, value_dim=6, decay=0.1
):
    """q, k, v, g, beta and level scales of any sign; k of unit length."""
    rng = np.random.default_rng(seed)
    q, k = (rng.normal(size=(batch, length, groups, key_dim)) for _ in range(2))
    return {
        "q": q.astype(np.float32),
        "k": (k / np.linalg.norm(k, axis=-1, keepdims=True)).astype(np.float32),
        "v": rng.normal(size=(batch, length, heads, value_dim)).astype(np.float32),
        "g": (-decay * rng.exponential(size=(batch, length, heads))).astype(np.float32),
        "beta": rng.uniform(size=(batch, length, heads)).astype(np.float32),
        "level_scales": rng.normal(size=(batch, length, heads, levels)).astype(np.float32),
    }


STATIC = ("beyond_levels", "chunk_size", "implementation", "max_documents", "return_state")


def run(op, x, **settings):
    """(y, state) of one of OPS, compiled; `beta` is not used by SSD."""
    static = tuple((name, settings.pop(name)) for name in STATIC if name in settings)
    return _run(op, static, {**x, **settings})


@partial(jax.jit, static_argnums=(0, 1))
def _run(op, static, x):
    x = {"return_state": True, **jax.tree.map(jnp.asarray, x), **dict(static)}
    if op == "ssd":
        return log_linear_ssd(**{name: value for name, value in x.items() if name != "beta"})
    return log_linear_gated_delta_rule(**x)


def part(x, start, stop):
    """Tokens start to stop of all inputs."""
    return {name: value[:, start:stop] for name, value in x.items()}


def relative(got, want):
    """Frobenius norm of the difference over that of `want`; absolute where `want` is zero."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return np.linalg.norm(got - want) / (np.linalg.norm(want) or 1.0)


def assert_close(got, want, tolerance, label):
    error = relative(got, want)
    assert error <= tolerance, f"{label}: relative error {error:.1e} > {tolerance:.0e}"
