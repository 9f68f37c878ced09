"""A golden file of the linear family as inputs, expectations and the checks of its README."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.goldens import golden_path

# Relative Frobenius error per tensor; absolute where the expectation is zero.
TOLERANCE = {"float64": 1e-6, "float32": 3e-6}
DECAY_TOLERANCE = {"float64": 1e-6, "float32": 2e-5}  # of what gradients of decays run through
ABSOLUTE = 1e-6


class GoldenCase:
    """Attributes: `inputs` and `expected` by name, `meta`."""

    def __init__(self, name: str):
        file = np.load(golden_path(f"log_linear/{name}.npz"))
        self.inputs = {k[3:]: file[k] for k in file.files if k.startswith("in_")}
        self.expected = {k[4:]: file[k] for k in file.files if k.startswith("out_")}
        self.meta = json.loads(str(file["meta"]))

    def arrays(self, dtype: str) -> dict[str, jax.Array]:
        return {name: jnp.asarray(x, dtype) for name, x in self.inputs.items()}


def check(name: str, got: Any, want: np.ndarray, dtype: str, decay: bool = False) -> None:
    """The README's tolerance for one tensor; prints what was measured."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{name}: shape {got.shape}, expected {want.shape}"
    size = np.linalg.norm(want)
    error = np.linalg.norm(got - want)
    limit = (DECAY_TOLERANCE if decay else TOLERANCE)[dtype] * size if size else ABSOLUTE
    print(f"{name}: error {error:.2e}, size {size:.3g}, {error / limit:.1%} of the tolerance")
    assert error <= limit, f"{name}: error {error:.2e} of size {size:.3g}, allowed {limit:.2e}"
