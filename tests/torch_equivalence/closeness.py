"""Named comparison of arrays against PyTorch's; what was measured is printed (pytest -rP)."""

import numpy as np
from flax import traverse_util

LOGITS_ATOL, LOGITS_RTOL, LOSS_ATOL = 5e-5, 1e-5, 1e-5
GRADIENT_ATOL, GRADIENT_RTOL = 1e-6, 1e-4  # the second times the largest element


def check_logits(got, want, what: str) -> None:
    difference = np.abs(np.asarray(got) - np.asarray(want)).max()
    print(f"{what}: max difference {difference:.2e}, size {np.abs(want).max():.3g}")
    np.testing.assert_allclose(got, want, atol=LOGITS_ATOL, rtol=LOGITS_RTOL, err_msg=what)


def check_loss(got, want) -> None:
    print(f"loss: difference {abs(float(got) - float(want)):.2e}, size {float(want):.4g}")
    assert abs(float(got) - float(want)) < LOSS_ATOL


def check_gradients(got: dict, want: dict, what: str) -> None:
    """Every leaf within the tolerance, and none so small that the tolerance would hide it."""
    got, want = (traverse_util.flatten_dict(x, sep="/") for x in (got, want))
    assert got.keys() == want.keys()
    worst = 0.0
    for path, expected in want.items():
        expected, given = np.asarray(expected), np.asarray(got[path])
        size = np.abs(expected).max()
        assert size > 100 * GRADIENT_ATOL, f"{path}: gradients of size {size} test nothing"
        atol = GRADIENT_ATOL + GRADIENT_RTOL * size
        worst = max(worst, np.abs(given - expected).max() / atol)
        np.testing.assert_allclose(given, expected, atol=atol, rtol=0, err_msg=path)
    print(f"{what}: {len(want)} arrays, worst difference {worst:.1%} of the tolerance")
