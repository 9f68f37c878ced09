"""The XLA forms compile for accelerators: the real TPU compiler, and lowering for GPUs."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import screening
from tests.aot.run_compiler import need_tpu_compiler, run_compiler


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "implementation", "used"),
    [
        pytest.param("v5e:1x1", "chunked", "chunked", marks=pytest.mark.exhaustive),
        pytest.param("v6e:1x1", "chunked", "chunked", marks=pytest.mark.exhaustive),
        pytest.param("v5e:1x1", "default", "pallas_tpu", marks=pytest.mark.exhaustive),
        ("v5e:2x2", "default", "pallas_tpu"),
        pytest.param("v5p:2x2x1", "default", "pallas_tpu", marks=pytest.mark.exhaustive),
    ],
)
def test_training_step_compiles_for_tpu(topology, implementation, used):
    need_tpu_compiler()
    printed = run_compiler("compile_tpu", topology, implementation)
    assert f"implementations {used}\n" in printed
    temp_mib = float(printed.split("temp_mib")[1])
    assert temp_mib < 256


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_screening_lowers(platform):
    x = jax.ShapeDtypeStruct((1, 300, 2, 16), jnp.bfloat16)
    per_head = jax.ShapeDtypeStruct((2,), jnp.float32)

    def total(*args):
        return screening(*args, implementation="chunked").astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3, 4)))
    gradient.trace(x, x, x, per_head, per_head).lower(lowering_platforms=(platform,))
