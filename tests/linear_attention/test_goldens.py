"""All ops against recorded PyTorch runs: outputs, states and every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import interpret_kernels, ssd
from pallas_kernels.linear_attention import NormalizedState
from tests.goldens import golden_names, golden_path
from tests.linear_attention.cases import GATE_TOLERANCE, OPS, Case, assert_close, run

FILES = {
    "linear_attn": "linear_attention",
    "linear_attn_norm": "normalised",
    "retention": "retention",
    "ssd": "ssd",
    "delta_rule": "delta_rule",
    "gated_delta_rule": "gated_delta_rule",
}
NAMES = [name for prefix in FILES for name in golden_names("log_linear", f"{prefix}__*.npz")]
SCANS = golden_names("log_linear", "mamba2_scan__*.npz")
EXHAUSTIVE = pytest.mark.exhaustive
# dtype -> relative errors allowed in outputs, gradients, and the gradient of g
TOLERANCES = {"float64": (1e-6,) * 3, "float32": (3e-6, 3e-6, 2e-5), "bfloat16": (1e-2, 2e-2, 2e-2)}


def load(name):
    """The op, its case, and the results wanted, float64."""
    with np.load(golden_path(name)) as file:
        data = {key: np.asarray(file[key], np.float64) for key in file.files if key != "meta"}
    op = FILES[name.split("/")[1].split("__")[0]]
    inputs = {x: data[f"in_{x}"] for x in OPS[op][1] if f"in_{x}" in data}
    if op == "retention":  # recorded with RetNet's own decays
        inputs["g"] = np.log1p(-(2.0 ** (-5 - np.arange(inputs["v"].shape[2]))))
    state = data["out_ht"]
    if op == "normalised":
        state = NormalizedState(state, data["out_z"][:, 0])
    if "in_h0" in data:
        inputs["state"] = data["in_h0"]
    dstate = data.get("in_dht", jax.tree.map(np.zeros_like, state))
    wanted = {"y": data["out_o"], "state": state}
    for x in inputs:
        key = "out_dh0" if x == "state" else f"out_d{x}"
        if key in data:
            wanted[f"d{x}"] = data[key]
    return op, Case(inputs, (data["in_do"], dstate)), wanted


def cast(case, dtype):
    """Inputs in the dtype; gates and states are float32 with bfloat16."""
    wide = "float32" if dtype == "bfloat16" else dtype
    inputs = {
        name: jnp.asarray(x, dtype if name in "qkv" else wide) for name, x in case.inputs.items()
    }
    return Case(inputs, jax.tree.map(lambda x: jnp.asarray(x, wide), case.cotangents))


# Every shape takes seconds to compile. Kernels get of each op one, at lengths that chunks do not
# divide, of several chunks, and with strong gates.
FOR_KERNELS = ["_norm__T7", "ssd__T257", "/delta_rule__T100", "gated_delta_rule__T96_strong"]


def cases():
    for name in NAMES:
        several = any(tag in name for tag in ("T96", "T100", "T257"))
        rounded = any(tag in name for tag in ("T96", "T257"))
        yield name, "reference", "float64"
        yield name, "chunked", "float64"
        for dtype, some in (("float32", several), ("bfloat16", rounded)):
            yield pytest.param(name, "chunked", dtype, marks=() if some else EXHAUSTIVE)
        if "__T1." in name:  # a step of the recurrence, and no kernel's
            continue
        for kernel in ("pallas_tpu", "pallas_gpu"):
            hardest = kernel == "pallas_gpu" and "gated_delta_rule__T96" in name
            some = pytest.mark.slow if any(tag in name for tag in FOR_KERNELS) else EXHAUSTIVE
            yield pytest.param(name, kernel, "float32", marks=() if hardest else some)
            mark = pytest.mark.slow if hardest else EXHAUSTIVE
            yield pytest.param(name, kernel, "bfloat16", marks=mark)


@pytest.mark.parametrize(("name", "implementation", "dtype"), list(cases()))
def test_outputs_states_and_gradients(name, implementation, dtype):
    op, case, wanted = load(name)
    with jax.enable_x64(dtype == "float64"), interpret_kernels():
        case = cast(case, dtype)
        got = run(op, case, implementation=implementation)
    assert got["y"].dtype == dtype
    assert got["state"][0].dtype == ("float32" if dtype == "bfloat16" else dtype)
    got = {x: got[x] for x in wanted}
    outputs, gradients, gates = TOLERANCES[dtype]
    parts = {"y", "state"}, wanted.keys() - {"y", "state"}
    for names, tolerance in zip(parts, (outputs, gradients), strict=True):
        assert_close(
            {x: got[x] for x in names}, {x: wanted[x] for x in names}, tolerance, gates, name
        )


@pytest.mark.parametrize("name", SCANS)
def test_the_scan_of_mamba_2(name):
    """SSD with q and k shared by groups of heads, and what Mamba-2 does around it."""
    with np.load(golden_path(name)) as file:
        data = {key: file[key] for key in file.files if key != "meta"}
    names = [key[3:] for key in data if key.startswith("in_") and key != "in_do"]

    @jax.jit
    def scan(x):
        dt = jax.nn.softplus(x["dt"] + x["dt_bias"])
        y, _ = ssd(x["C"], x["Bm"], dt[..., None] * x["x"], -jnp.exp(x["A_log"]) * dt)
        return (y + x["D"][:, None] * x["x"]) * jax.nn.silu(x["z"])

    y, pull = jax.vjp(scan, {name: data[f"in_{name}"] for name in names})
    got = {"y": y} | pull(data["in_do"])[0]
    wanted = {"y": data["out_o"]} | {name: data[f"out_d{name}"] for name in names}
    assert_close(got, wanted, GATE_TOLERANCE)
