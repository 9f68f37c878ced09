"""Pallas and its backends are imported when a kernel is built, and only kernels miss them."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import gated_delta_rule, log_linear_ssd, screening, ssd
from pallas_kernels.common import dispatch
from pallas_kernels.common.pallas import BACKENDS, PALLAS
from pallas_kernels.screening import screening_decode
from tests.jax_internals import on_device

x, gates = jnp.full((1, 4, 1, 32), 0.25), jnp.full((1, 4, 1), -0.5)
scales, per_head = jnp.ones((1, 4, 1, 3)), jnp.array([0.5])
ring = (jnp.array([[4]]), jnp.array([4]), jnp.array([0]), jnp.array([0]), jnp.array([4]))
OPS = {
    "screening": lambda **how: screening(x, x, x, 4 * per_head, per_head, **how),
    "screening_decode": lambda **how: screening_decode(
        x[:, :1], x[:, :, 0], x[:, :, 0], *ring, 4 * per_head, per_head, **how
    ),
    "ssd": lambda **how: ssd(x, x, x, gates, **how)[0],
    "gated_delta_rule": lambda **how: gated_delta_rule(x, x, x, gates, -gates, **how)[0],
    "log_linear_ssd": lambda **how: log_linear_ssd(x, x, x, gates, scales, **how)[0],
    "log_linear_ssd of one token": lambda **how: log_linear_ssd(
        x[:, :1], x[:, :1], x[:, :1], gates[:, :1], scales[:, :1], **how
    )[0],
}


@pytest.mark.parametrize("implementation", BACKENDS)
@pytest.mark.parametrize("absent", ["backend", "pallas"])
@pytest.mark.parametrize("op", OPS)
def test_kernels_say_what_they_miss(op, absent, implementation, monkeypatch):
    backend = BACKENDS[implementation]
    for module in (backend,) if absent == "backend" else (backend, PALLAS):
        monkeypatch.setitem(sys.modules, module, None)  # as if it could not be found
    with pytest.raises(NotImplementedError, match=f"{implementation}: its kernels need {PALLAS}"):
        OPS[op](implementation=implementation)


@pytest.mark.parametrize(
    ("implementation", "device"),
    [("pallas_gpu", ("NVIDIA H100", "cuda")), ("pallas_tpu", ("TPU v5 lite", "tpu"))],
)
@pytest.mark.parametrize("op", OPS)
def test_the_default_does_without_them(op, implementation, device, monkeypatch):
    monkeypatch.setitem(sys.modules, BACKENDS[implementation], None)
    with dispatch.record_choices() as choices, on_device(*device):
        jax.eval_shape(OPS[op])
    assert [*choices.values()] == [{"chunked"}]


def test_another_makers_gpu_gets_the_chunked_form(monkeypatch):
    gpu = SimpleNamespace(compute_capability="gfx942")
    monkeypatch.setattr(jax, "local_devices", lambda backend: [gpu])
    for op in ("screening", "ssd", "gated_delta_rule", "log_linear_ssd"):
        with dispatch.record_choices() as choices, on_device("MI", "rocm"):
            jax.eval_shape(OPS[op])
        assert [*choices.values()] == [{"chunked"}], op


WITHOUT_TRITON = """
import importlib, pkgutil, sys

class Hides:
    def find_spec(self, name, path=None, target=None):
        if name == "jax.experimental.pallas.triton":
            raise ImportError(f"{name} is hidden")

sys.meta_path.insert(0, Hides())
import multiscreen_jax as mj, pallas_kernels

optional = {"jax.experimental.pallas", "triton", "jax_triton", "tokamax"}
for package in (pallas_kernels, mj):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:  # lm-eval is an extra
            assert "needs the package lm_eval" in str(error), error
assert not optional & sys.modules.keys(), optional & sys.modules.keys()

import jax.numpy as jnp

x, window, width = jnp.full((1, 4, 1, 32), 0.25), jnp.array([3.0]), jnp.array([0.5])
chunked = pallas_kernels.screening(x, x, x, window, width)
with pallas_kernels.interpret_kernels():
    on_tpu = pallas_kernels.screening(x, x, x, window, width, implementation="pallas_tpu")
    assert jnp.allclose(chunked, on_tpu, atol=1e-5)
    try:
        pallas_kernels.screening(x, x, x, window, width, implementation="pallas_gpu")
    except NotImplementedError as error:
        print(error)
"""


def test_everything_but_its_kernels_works_without_triton():
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "jax.experimental.pallas.triton is hidden" in ended.stdout


def test_the_ops_here_are_healthy():
    """Else what the tests above show would mean little."""
    for op, run in OPS.items():
        assert np.isfinite(run()).all(), op
