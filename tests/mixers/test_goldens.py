"""Mixers against the authors' code: outputs, states and the gradients of all weights.

The parameter-level ops are put together here as the mixers do it; whole mixers run as they are.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax.layers.norms import l2_normalize
from multiscreen_jax.mixers.log_linear import positive_scales
from multiscreen_jax.mixers.mixer import Context
from multiscreen_jax.mixers.recurrent import decay
from multiscreen_jax.models import LogLinearGatedDeltaNetConfig, LogLinearMamba2Config
from pallas_kernels import log_linear_gated_delta_rule, log_linear_ssd, ssd
from tests.goldens import golden_names
from tests.mixers.golden_case import GoldenCase, check

DTYPES = ("float32", "float64")
IN_FLOAT32 = ("T7", "T37", "T128")
# Gradients that flow through sums of decays, dg of the README.
DECAYS = {"ddt", "dA_log", "ddt_bias", "da_raw"}


def cases(op):
    names = [
        name.split("/")[1].removesuffix(".npz") for name in golden_names("log_linear", f"{op}__*")
    ]
    return pytest.mark.parametrize(("name", "dtype"), [case(n, d) for n in names for d in DTYPES])


def case(name, dtype):
    """float64 of every file; float32, which is that and rounding, of a few."""
    if dtype == "float64":
        return pytest.param(name, dtype)
    few = name.endswith(IN_FLOAT32)
    return pytest.param(name, dtype, marks=pytest.mark.slow if few else pytest.mark.exhaustive)


def check_scan(name, dtype, run):
    """`run(**inputs)` -> (o, states or None) and its gradients."""
    with jax.enable_x64(dtype == "float64"):
        case = GoldenCase(name)
        inputs = case.arrays(dtype)
        cotangent = inputs.pop("do")

        def loss(inputs):
            o, states = run(**inputs)
            return jnp.sum(o * cotangent), (o, states)

        (_, (o, states)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)
        assert o.dtype == dtype
        check("o", o, case.expected["o"], dtype)
        if states is not None:
            want = np.moveaxis(case.expected["states"], -1, 2)
            check("states", states, want, dtype)
        for key, grad in grads.items():
            check(f"d{key}", grad, case.expected[f"d{key}"], dtype, f"d{key}" in DECAYS)


@cases("mamba2_scan")
def test_mamba2_scan(name, dtype):
    def run(x, dt, A_log, Bm, C, D, z, dt_bias):
        step, g = decay(dt, dt_bias, A_log)
        y, _ = ssd(C, Bm, step[..., None] * x, g, precision="highest")
        return (y + D[:, None] * x) * jax.nn.silu(z), None

    check_scan(name, dtype, run)


@cases("loglinear_mamba2_scan")
def test_log_linear_mamba2_scan(name, dtype):
    def run(x, dt, A_log, Bm, C, dl, Lp, D, dt_bias):
        step, g = decay(dt, dt_bias, A_log)
        y, state = log_linear_ssd(
            C, Bm, step[..., None] * x, g, positive_scales(dl, Lp),
            return_state=True, precision="highest",
        )  # fmt: skip
        return y + D[:, None] * x, state.levels

    check_scan(name, dtype, run)


@cases("loglinear_gdn_layercore")
def test_log_linear_gated_delta_net_core(name, dtype):
    def run(q, k, v, a_raw, b_raw, l_raw, Lp, A_log, dt_bias):
        _, g = decay(a_raw, dt_bias, A_log)
        y, state = log_linear_gated_delta_rule(
            l2_normalize(q), l2_normalize(k), v, g, jax.nn.sigmoid(b_raw),
            positive_scales(l_raw, Lp), return_state=True, precision="highest",
        )  # fmt: skip
        return y, state.levels

    check_scan(name, dtype, run)


def check_mixer(name, dtype, config_class, sizes, ours):
    """y, dx and the gradients of all weights; `ours` translates PyTorch names."""
    with jax.enable_x64(dtype == "float64"):
        case = GoldenCase(name)
        inputs, meta = case.arrays(dtype), case.meta
        x, cotangent = inputs.pop("x"), inputs.pop("dy")
        config = config_class(
            vocab_size=2, model_dim=x.shape[-1], num_layers=1, num_heads=meta["heads"],
            num_levels=meta["L"], norm_eps=meta["norm_eps"], dtype=dtype, param_dtype=dtype,
            precision="highest", **sizes(meta),
        )  # fmt: skip
        mixer = config.mixer().build(config.common)
        context = Context(None, jnp.arange(x.shape[1])[None])

        def loss(weights, x):
            y = mixer.apply({"params": ours(weights, config)}, x, None, context).y
            return jnp.sum(y * cotangent), y

        (_, y), (grads, dx) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(inputs, x)
        check("y", y, case.expected["y"], dtype)
        check("dx", dx, case.expected["dx"], dtype)
        assert grads.keys() == {k[1:] for k in case.expected if k[0] == "d" and k != "dx"}
        for key, grad in grads.items():
            check(f"d{key}", grad, case.expected[f"d{key}"], dtype, f"d{key}" in DECAYS)
        fresh = jax.eval_shape(mixer.init, jax.random.key(0), x, None, context)["params"]
        given = ours(inputs, config)
        assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, given)


def _heads(x, *shape):
    """A PyTorch weight [out, in] as [in, *shape]."""
    return x.T.reshape(x.shape[1], *shape)


def mamba2_weights(w, c):
    h, v, k, levels = c.num_heads, c.value_dim, c.key_dim, c.num_levels
    inner = h * v
    cuts = np.cumsum([inner, inner, k, k, h])
    z, x, b, cc, dt, dl = jnp.split(w["in_proj"], cuts)
    kernels = jnp.split(w["conv_w"], [inner, inner + k])
    biases = jnp.split(w["conv_b"], [inner, inner + k])
    shapes = {"value": (h, v), "key": (1, k), "query": (1, k)}
    convolutions = {
        f"{name}_conv": {"kernel": _heads(kernel, *shape), "bias": bias.reshape(shape)}
        for (name, shape), kernel, bias in zip(shapes.items(), kernels, biases, strict=True)
    }
    return {
        "gate": _heads(z, h, v), "value": _heads(x, h, v), "key": _heads(b, 1, k),
        "query": _heads(cc, 1, k), "step": _heads(dt, h), "level": _heads(dl, h, levels),
        **convolutions, "step_bias": w["dt_bias"], "log_rate": w["A_log"], "skip": w["D"],
        "level_gain": w["L"], "output_norm": {"head_scale": w["norm_w"].reshape(h, v)},
        "output": w["out_proj"].T.reshape(h, v, -1),
    }  # fmt: skip


def gated_delta_net_weights(w, c):
    h, v, k, levels = c.num_heads, c.value_dim, c.key_dim, c.num_levels
    return {
        "query": _heads(w["q_proj"], h, k), "key": _heads(w["k_proj"], h, k),
        "value": _heads(w["v_proj"], h, v), "gate": _heads(w["g_proj"], h, v),
        "step": _heads(w["a_proj"], h), "beta": _heads(w["b_proj"], h),
        "level": _heads(w["l_proj"], h, levels), "output": w["o_proj"].T.reshape(h, v, -1),
        "query_conv": {"kernel": _heads(w["q_conv"], h, k)},
        "key_conv": {"kernel": _heads(w["k_conv"], h, k)},
        "value_conv": {"kernel": _heads(w["v_conv"], h, v)},
        "log_rate": w["A_log"], "step_bias": w["dt_bias"], "level_gain": w["L"],
        "output_norm": {"scale": w["norm_w"]},
    }  # fmt: skip


@cases("loglinear_mamba2_mixer")
def test_log_linear_mamba2_mixer(name, dtype):
    check_mixer(
        name, dtype, LogLinearMamba2Config,
        lambda meta: {"key_dim": meta["state"], "value_dim": meta["head_dim"]},
        mamba2_weights,
    )  # fmt: skip


@cases("loglinear_gdn_mixer")
def test_log_linear_gated_delta_net_mixer(name, dtype):
    check_mixer(
        name, dtype, LogLinearGatedDeltaNetConfig,
        lambda meta: {"key_dim": meta["head_k"], "value_dim": meta["head_v"]},
        gated_delta_net_weights,
    )  # fmt: skip
