"""The log-linear ops against recorded runs of the PyTorch references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import interpret_kernels
from tests.goldens import golden_names, golden_path
from tests.log_linear.cases import assert_close, run

NAMES = [
    f"{op}__{tag}" for op in ("loglinear_ssd", "loglinear_gdn") for tag in ("T7", "T96_signed")
]
NAMES.append("loglinear_gdn__T96_strong")
MORE = sorted(
    {path.removeprefix("log_linear/").removesuffix(".npz")
     for pattern in ("loglinear_ssd__*.npz", "loglinear_gdn__*.npz")
     for path in golden_names("log_linear", pattern)} - set(NAMES)
)  # fmt: skip
# Chunks of 16: most cases have several. "tree" is taken when no state is asked for.
FORMS = {
    "reference": {"implementation": "reference"},
    "chunked": {"implementation": "chunked", "chunk_size": 16},
    "tree": {"implementation": "chunked", "chunk_size": 16, "return_state": False},
    "pallas_tpu": {"implementation": "pallas_tpu"},
    "pallas_gpu": {"implementation": "pallas_gpu"},
}
EXHAUSTIVE = pytest.mark.exhaustive
TOLERANCES = {
    "float64": {"": 1e-6},
    "float32": {"": 3e-6, "dg": 2e-5},
    "bfloat16": {"": 2e-2, "o": 1e-2, "states": 1e-2},
}


def check(name, form, dtype):
    file = np.load(golden_path(f"log_linear/{name}.npz"))
    op = "ssd" if "ssd" in name else "gated_delta_rule"
    short = {"level_scales": "lam"}
    names = ["q", "k", "v", "g", "level_scales"] + ([] if op == "ssd" else ["beta"])
    with jax.enable_x64(dtype == "float64"), interpret_kernels():
        wide = "float64" if dtype == "float64" else "float32"
        kept = {"g": wide, "beta": wide, "level_scales": wide}
        x = {n: jnp.asarray(file[f"in_{short.get(n, n)}"], kept.get(n, dtype)) for n in names}
        cotangent = jnp.asarray(file["in_do"], wide)

        @jax.jit
        def outputs(x):
            def loss(x):
                y, state = run(op, x, **FORMS[form])
                return jnp.sum(y * cotangent), (y, state)

            (_, (y, state)), gradients = jax.value_and_grad(loss, has_aux=True)(x)
            return y, state, gradients

        y, state, gradients = outputs(x)
        got = {"o": y} | {f"d{n}": gradients[n] for n in names}
        if state is not None:
            got["states"] = jnp.moveaxis(state.levels, 2, -1)
            assert state.levels.dtype == wide
            assert (np.asarray(state.length) == y.shape[1]).all()
        for key, value in got.items():
            want = file[f"out_{'dlam' if key == 'dlevel_scales' else key}"]
            limits = TOLERANCES[dtype]
            assert_close(value, want, limits.get(key, limits[""]), f"{name} {form} {key}")


def cases():
    for name in NAMES:
        for form in FORMS:
            for dtype in TOLERANCES:
                if not ("pallas" in form and dtype == "float64"):  # which kernels do not take
                    yield pytest.param(name, form, dtype, marks=marks(name, form, dtype))


def marks(name, form, dtype):
    """Every kernel takes seconds to compile, and bfloat16 is only rounded by the other forms."""
    kernel, signed = "pallas" in form, "signed" in name
    few = signed and "gdn" in name
    if dtype == "bfloat16":
        return pytest.mark.slow if few and form in ("pallas_gpu", "chunked") else EXHAUSTIVE
    if kernel:
        return pytest.mark.slow if signed else EXHAUSTIVE
    return () if signed else pytest.mark.slow


@pytest.mark.parametrize(("name", "form", "dtype"), list(cases()))
def test_outputs_states_and_gradients(name, form, dtype):
    check(name, form, dtype)


UNEVEN = ("T100", "T257")


def full_set():
    for name in MORE:
        for form in FORMS:
            # Kernels take one: several batches, and chunks that do not divide. Lengths that are
            # whole chunks repeat what longer ones with a rest show.
            seen = "gdn__T257" in name if "pallas" in form else form == "chunked" or "T96" in name
            some = seen and ("T96" in name or any(tag in name for tag in UNEVEN))
            yield pytest.param(name, form, marks=pytest.mark.slow if some else EXHAUSTIVE)


@pytest.mark.parametrize(("name", "form"), list(full_set()))
def test_all_of_the_full_set(name, form):
    check(name, form, "float32")


@pytest.mark.exhaustive
@pytest.mark.parametrize("form", ["pallas_tpu", "pallas_gpu"])
@pytest.mark.parametrize("name", MORE)
def test_kernels_in_bfloat16_on_the_full_set(name, form):
    check(name, form, "bfloat16")
