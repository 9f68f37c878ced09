"""`python -m tests.common.nan_window`: a head's window is NaN, the sequence lies on eight devices.

Ends with an error unless that head is NaN everywhere, and the others are what they are on one
device: values and gradients.
"""

import jax
import jax.numpy as jnp
import numpy as np

from multiscreen_jax.sharding import make_mesh
from pallas_kernels import screening
from tests.screening.test_chunked import make_inputs

LENGTH, BROKEN = 72, 1
# One that ends among the tokens of the device before, and one that reaches all devices.
WINDOWS = (5.0, np.nan, 60.0)


@jax.jit
def step(cotangent, *x):
    h, pull = jax.vjp(lambda *x: screening(*x, implementation="chunked"), *x)
    return h, *pull(cotangent)


def main() -> None:
    rest = make_inputs(
        LENGTH, windows=(5.0, 17.0, 60.0), key_dim=16, value_dim=32, dtype=np.float32
    )
    q, k, v, _, width, cotangent = (jnp.asarray(x) for x in rest)
    cotangent = cotangent.at[:, :, BROKEN].set(0)
    inputs = cotangent, q, k, v, jnp.asarray(WINDOWS, jnp.float32), width
    wanted = jax.device_get(step(*inputs))
    with jax.set_mesh(make_mesh(1, 1, 8, 1)):
        got = jax.device_get(step(*inputs))
    healthy = [head for head in range(len(WINDOWS)) if head != BROKEN]
    assert np.isnan(got[0][:, :, BROKEN]).all()
    for a, b in zip(got, wanted, strict=True):
        a, b = (np.take(x, healthy, axis=2 if x.ndim == 4 else 0) for x in (a, b))
        assert np.isfinite(b).all()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


if __name__ == "__main__":
    main()
