"""The screening unit (unit norms, MiPE, screening, TanhNorm) against recorded PyTorch runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax.layers.positions import mipe, mipe_turns
from pallas_kernels import screening
from pallas_kernels.common.numerics import tanh_norm, unit_norm
from tests.goldens import golden_names, golden_path
from tests.marks import slow_unless

NAMES = golden_names("multiscreen", "unit_*.npz")


def screening_unit(inputs, threshold, implementation):
    """u and h of a whole unit, from un-normalised q, k, v and the two raw scalars per head."""
    window = jnp.exp(inputs["s_w"]) + 1
    width = jax.nn.sigmoid(inputs["s_r"])
    batch, length = inputs["q"].shape[:2]
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    turns = mipe_turns(positions, window, threshold)
    h = screening(
        mipe(unit_norm(inputs["q"]), turns),
        mipe(unit_norm(inputs["k"]), turns),
        unit_norm(inputs["v"]),
        window,
        width,
        implementation=implementation,
        precision="highest",
    )
    return tanh_norm(h), h


@pytest.mark.parametrize("implementation", slow_unless(("chunked",), ("reference", "chunked")))
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients(name, implementation):
    file = np.load(golden_path(name))
    threshold = json.loads(str(file["config"]))["w_th"]
    inputs = {k: jnp.asarray(file[f"in/{k}"]) for k in ("q", "k", "v", "s_w", "s_r")}
    cotangent = jnp.asarray(file["in/cotangent"])

    @jax.jit
    def run(inputs):
        (u, h), pull = jax.vjp(lambda x: screening_unit(x, threshold, implementation), inputs)
        return u, h, pull((cotangent, jnp.zeros_like(h)))[0]

    u, h, gradient = run(inputs)
    np.testing.assert_allclose(u, file["out/u"], atol=1e-5)
    np.testing.assert_allclose(h.transpose(0, 2, 1, 3), file["out/pre_tanhnorm"], atol=1e-5)
    for key, value in gradient.items():
        expected = file[f"grad/{key}"]
        limit = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(value, expected, atol=limit, err_msg=key)
        if f"grad_f64/{key}" in file.files:
            exact = file[f"grad_f64/{key}"]
            np.testing.assert_allclose(value, exact, atol=1e-4 * np.abs(exact).max(), err_msg=key)
