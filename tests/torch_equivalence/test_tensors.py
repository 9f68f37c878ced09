"""Torch tensors of every kind go in; what comes out loads back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax import convert
from tests.convert.trees import MULTISCREEN, assert_same, random_tree

torch = pytest.importorskip("torch")
torch_files = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.torch
SOURCE = "multiscreen/hf"


def tensors(dtype=None) -> dict:
    named = convert.to_torch(SOURCE, random_tree(MULTISCREEN), MULTISCREEN)
    return {name: torch.from_numpy(x).to(dtype) for name, x in named.items()}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_dtypes(dtype):
    state = tensors(getattr(torch, dtype))
    params = convert.from_torch(SOURCE, state, MULTISCREEN)
    want = {name: x.float().numpy() for name, x in state.items()}
    assert_same(params, convert.from_torch(SOURCE, want, MULTISCREEN))


def test_bfloat16_stays_exact():
    state = tensors(torch.bfloat16)
    config = dataclasses.replace(MULTISCREEN, param_dtype="bfloat16")
    params = convert.from_torch(SOURCE, state, config)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    back = convert.to_torch(SOURCE, params, config)
    for name, tensor in state.items():
        assert torch.equal(torch.from_numpy(back[name]).bfloat16(), tensor), name


def test_parameters_that_require_gradients_and_strided_views():
    state = tensors()
    plain = convert.from_torch(SOURCE, state, MULTISCREEN)
    strided = {
        name: torch.nn.Parameter(x.t().contiguous().t() if x.ndim == 2 else x)
        for name, x in state.items()
    }
    assert_same(convert.from_torch(SOURCE, strided, MULTISCREEN), plain)


def test_params_do_not_alias_the_torch_model():
    state = tensors()
    params = convert.from_torch(SOURCE, state, MULTISCREEN)
    before = np.array(params["embedding"]["rows"])
    state["multiscreen.embed.weight"].zero_()
    np.testing.assert_array_equal(params["embedding"]["rows"], before)


def test_problems_name_torch_tensors():
    state = tensors()
    state["multiscreen.embed.weight"] = torch.zeros(13, 10, dtype=torch.int8)
    state["multiscreen.s_E"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"torch.int8.*s_E has shape \(1,\), expected \(\)"):
        convert.from_torch(SOURCE, state, MULTISCREEN)


def test_files_of_torch_and_for_torch(tmp_path):
    state, path = tensors(torch.bfloat16), tmp_path / "a.safetensors"
    torch_files.save_file(state, path)
    params, _ = convert.load_safetensors(path, source=SOURCE, config=MULTISCREEN)
    assert_same(params, convert.from_torch(SOURCE, state, MULTISCREEN))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    convert.save_safetensors(path, half, MULTISCREEN, SOURCE)
    for name, tensor in torch_files.load_file(path).items():
        assert torch.equal(tensor, state[name]), name
