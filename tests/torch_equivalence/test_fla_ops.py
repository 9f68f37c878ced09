"""The linear and log-linear ops against the naive functions of fla-core, live.

The package itself needs triton, so single files of it are loaded. They compute in float32.
"""

import importlib.util
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.linear_attention import NormalizedState, retention_decays
from pallas_kernels.log_linear import level_count
from tests.linear_attention.cases import Case, assert_close, make_case, run
from tests.log_linear import cases as log_linear

torch = pytest.importorskip("torch")
pytest.importorskip("einops")
FLA = importlib.util.find_spec("fla")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(FLA is None, reason="fla-core is not installed (see .ci/run)"),
]
LENGTH = 192  # some of their functions take whole chunks of 64 only


def heads_first(function, *arrays):
    """For a function of arrays [B,H,T,.]."""
    return function(*(x.transpose(1, 2) for x in arrays)).transpose(1, 2)


def simple_gla(form, module, q, k, v, g, state):
    function = getattr(module, f"naive_{form}_simple_gla")
    return function(q, k, v, g, scale=1.0, initial_state=state, output_final_state=True)


def gated_delta_rule(form, module, q, k, v, g, beta, state):
    function = getattr(module, f"naive_{form}_gated_delta_rule")
    return function(q, k, v, g=g, beta=beta, initial_state=state, output_final_state=True)


def delta_rule(module, q, k, v, beta, state):
    q, k, v, beta = (x.transpose(1, 2) for x in (q, k, v, beta))
    y, state = module.delta_rule_recurrence(q, k, v, beta, state)
    return y.transpose(1, 2), state


def linear_attention(module, q, k, v, state):
    return module.naive_recurrent_linear_attn(q, k, v, initial_state=state, output_final_state=True)


def normalised(module, q, k, v, state):
    y, (values, keys) = module.naive_recurrent_linear_attn(
        q, k, v, initial_state=(state.values, state.keys[:, None]), output_final_state=True,
        normalize=True,
    )  # fmt: skip
    return y, NormalizedState(values, keys[:, 0])


CONTINUED = [
    ("ssd", "simple_gla", partial(simple_gla, "recurrent")),
    ("ssd", "simple_gla", partial(simple_gla, "chunk")),
    ("delta_rule", "delta_rule", delta_rule),
    ("gated_delta_rule", "gated_delta_rule", partial(gated_delta_rule, "recurrent")),
    ("gated_delta_rule", "gated_delta_rule", partial(gated_delta_rule, "chunk")),
    ("linear_attention", "linear_attn", linear_attention),
    ("normalised", "linear_attn", normalised),
]
WHOLE = [
    ("ssd", "simple_gla", lambda m, **x: m.naive_parallel_simple_gla(**x, scale=1.0)[0]),
    ("delta_rule", "delta_rule", lambda m, q, k, v, beta: heads_first(
        lambda *x: m.delta_rule_chunkwise(*x)[0], q, k, v, beta)),
    ("linear_attention", "linear_attn", lambda m, **x: m.naive_chunk_linear_attn(**x)),
    ("normalised", "linear_attn", lambda m, **x: m.naive_chunk_linear_attn(**x, normalize=True)),
    ("retention", "retention", lambda m, q, k, v, g: heads_first(m.naive_retention, q, k, v)),
]  # fmt: skip


def load(folder):
    file = Path(FLA.origin).parent / "ops" / folder / "naive.py"
    spec = importlib.util.spec_from_file_location(folder, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def theirs(function, inputs, cotangents):
    """{"y", "state" if they know states, "d" + name of each input that they read}."""
    tensors = jax.tree.map(lambda x: torch.tensor(x, requires_grad=True), inputs)
    outputs = function(**tensors)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = zip(jax.tree.leaves(outputs), jax.tree.leaves(cotangents), strict=False)
    sum((y * torch.tensor(dy)).sum() for y, dy in pairs).backward()
    found = dict(zip(("y", "state"), outputs, strict=False))
    gradients = {f"d{name}": jax.tree.map(lambda x: x.grad, x) for name, x in tensors.items()}
    found |= {name: x for name, x in gradients.items() if x is not None}
    return jax.tree.map(lambda x: x.detach().numpy(), found)


@pytest.mark.parametrize(("op", "folder", "function"), CONTINUED)
def test_ops_after_a_state(op, folder, function):
    case = make_case(op, LENGTH)
    want = theirs(partial(function, load(folder)), case.inputs, case.cotangents)
    assert_close(run(op, case), want, tolerance=1e-5, gates=5e-5)


@pytest.mark.parametrize(("op", "folder", "function"), WHOLE)
def test_ops_on_whole_sequences(op, folder, function):
    inputs, cotangents = make_case(op, LENGTH)
    if op == "retention":
        inputs["g"] = np.asarray(retention_decays(4, np.dtype("float32")))
    inputs["state"], last = jax.tree.map(np.zeros_like, (inputs["state"], cotangents[1]))
    mine = {name: x for name, x in inputs.items() if name != "state"}
    want = theirs(partial(function, load(folder)), mine, cotangents)
    got = run(op, Case(inputs, (cotangents[0], last)))
    assert_close({name: got[name] for name in want}, want, tolerance=1e-5, gates=5e-5)
    assert {"y", "dq", "dk", "dv"} <= want.keys()


@pytest.mark.parametrize("groups", [1, 2])
def test_log_linear_ssd(groups):
    x = log_linear.inputs(150, level_count(150), groups=groups)
    del x["beta"]
    dy = np.random.default_rng(1).normal(size=x["v"].shape).astype(np.float32)
    want = theirs(load("log_linear_attn").naive_log_linear_attn, x, (dy,))

    @jax.jit
    def ours(x):
        y, pull = jax.vjp(lambda x: log_linear.run("ssd", x, return_state=False)[0], x)
        return {"y": y} | {f"d{name}": value for name, value in pull(dy)[0].items()}

    got = ours(jax.tree.map(jnp.asarray, x))
    assert_close(got, want, tolerance=1e-5, gates=5e-5)
