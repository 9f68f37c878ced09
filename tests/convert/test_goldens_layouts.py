"""Recorded weights and gradients of one model in two layouts must be one tree of ours."""

import json

import numpy as np
import pytest
from flax import traverse_util

from multiscreen_jax import convert
from multiscreen_jax.models.multiscreen import MultiscreenConfig
from tests.goldens import golden_names, golden_path

MODELS = [
    name.removesuffix(".hf_oracle.npz")
    for name in golden_names("multiscreen", "model_*.hf_oracle.npz")
]


def read(name: str, prefix: str):
    with np.load(golden_path(name)) as file:
        c = json.loads(str(file["config"]))
        config = MultiscreenConfig(
            vocab_size=c["vocab"],
            model_dim=c["d_model"],
            num_layers=c["n_layers"],
            num_heads=c["n_heads"],
            key_dim=c["d_key"],
            value_dim=c["d_value"],
        )
        return config, {k.removeprefix(prefix): file[k] for k in file if k.startswith(prefix)}


def test_there_are_goldens():
    assert MODELS


@pytest.mark.parametrize("model", MODELS)
def test_paper_files_round_trip(model):
    for prefix in ("param/", "grad/"):
        config, named = read(f"{model}.hf_oracle.npz", prefix)
        params = convert.from_torch("multiscreen/paper", named, config)
        again = convert.to_torch("multiscreen/paper", params, config)
        assert again.keys() == named.keys()
        for name, array in named.items():
            np.testing.assert_array_equal(again[name], array, err_msg=name)


@pytest.mark.parametrize("model", [m for m in MODELS if "wrap" in m])
def test_dieod_parameters_are_the_papers(model):
    config, paper = read(f"{model}.hf_oracle.npz", "param/")
    _, dieod = read(f"{model}.dieod.npz", "param/")
    ours = convert.from_torch("multiscreen/paper", paper, config)
    theirs = convert.from_torch("multiscreen/dieod", dieod, config)
    ours, theirs = (traverse_util.flatten_dict(x, sep="/") for x in (ours, theirs))
    for path, array in ours.items():
        np.testing.assert_array_equal(theirs[path], array, err_msg=path)
    back = convert.to_torch(
        "multiscreen/dieod", traverse_util.unflatten_dict(ours, sep="/"), config
    )
    for name, array in dieod.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


@pytest.mark.parametrize("model", [m for m in MODELS if "wrap" not in m])
def test_dieod_gradients_are_the_papers(model):
    config, paper = read(f"{model}.hf_oracle.npz", "grad/")
    _, dieod = read(f"{model}.dieod.npz", "grad/")
    ours = convert.from_torch("multiscreen/paper", paper, config)
    theirs = convert.from_torch("multiscreen/dieod", dieod, config)
    ours, theirs = (traverse_util.flatten_dict(x, sep="/") for x in (ours, theirs))
    for path, want in ours.items():
        atol = 2e-5 + 1e-4 * np.abs(want).max()
        np.testing.assert_allclose(theirs[path], want, atol=atol, rtol=0, err_msg=path)
