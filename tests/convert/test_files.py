"""Safetensors: round trips, foreign files, and files that are not what they should be."""

import dataclasses
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from multiscreen_jax import convert
from tests.convert.trees import MULTISCREEN, TRANSFORMER, assert_same, config_for, random_tree


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


@pytest.mark.parametrize("source", [None, *convert.sources()])
def test_round_trip(path, source):
    config = dataclasses.replace(config_for(source or "multiscreen/paper"), trained_length=64)
    params = random_tree(config)
    convert.save_safetensors(path, params, config, source)
    loaded, stored = convert.load_safetensors(path)
    assert_same(loaded, params)
    assert stored == config
    assert hash(stored) == hash(config)
    assert (
        load_file(path).keys()
        == convert.to_torch(source or "multiscreen/paper", params, config).keys()
    )


def test_whoever_may_read_other_files_may_read_these(path):
    params = random_tree(MULTISCREEN)
    before = os.umask(0o027)
    try:
        convert.save_safetensors(path, params, MULTISCREEN)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_transformer_is_saved_under_llama_names(path):
    convert.save_safetensors(path, random_tree(TRANSFORMER), TRANSFORMER)
    assert "model.embed_tokens.weight" in load_file(path)


def test_bfloat16_stays(path):
    config = dataclasses.replace(MULTISCREEN, param_dtype="bfloat16")
    params = random_tree(config, dtype=jnp.bfloat16)
    convert.save_safetensors(path, params, config)
    assert load_file(path)["W_E"].dtype == jnp.bfloat16
    assert_same(convert.load_safetensors(path)[0], params)


def test_foreign_file(path):
    source, params = "multiscreen/hf", random_tree(MULTISCREEN)
    save_file(convert.to_torch(source, params, MULTISCREEN), path, metadata={"format": "pt"})
    loaded, config = convert.load_safetensors(path, source=source, config=MULTISCREEN)
    assert_same(loaded, params)
    assert config is MULTISCREEN
    for given, absent in (
        ({}, "no source and no config"),
        ({"source": source}, "no config"),
        ({"config": MULTISCREEN}, "no source"),
    ):
        with pytest.raises(ValueError, match=f"{absent} in its metadata.*pass"):
            convert.load_safetensors(path, **given)


def test_given_config_overrules_the_stored_one(path):
    params = random_tree(MULTISCREEN)
    convert.save_safetensors(path, params, MULTISCREEN)
    other = dataclasses.replace(MULTISCREEN, num_heads=5)
    with pytest.raises(ValueError, match=r"weights.safetensors.*layers.0.W_Q has shape"):
        convert.load_safetensors(path, config=other)
    half = dataclasses.replace(MULTISCREEN, param_dtype="bfloat16")
    assert convert.load_safetensors(path, config=half)[0]["embedding"]["rows"].dtype == jnp.bfloat16


def saved(path) -> bytes:
    convert.save_safetensors(path, random_tree(MULTISCREEN), MULTISCREEN)
    return path.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[:4],
        lambda b: b[:200],
        lambda b: b[:-1],
        lambda b: b + b"\0",
        lambda b: b"PK\x03\x04" + b[4:],
        lambda b: b"not a weights file at all " * 20,
        lambda b: b[:8] + b"\xff" + b[9:],
        lambda b: b[:-7] + bytes([b[-7] ^ 1]) + b[-6:],
    ],
    ids=["empty", "4 bytes", "200 bytes", "cut", "longer", "zip", "text", "header", "flipped bit"],
)
def test_damaged_files(path, damage):
    path.write_bytes(damage(saved(path)))
    with pytest.raises(ValueError, match=r"weights\.safetensors") as caught:
        convert.load_safetensors(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_directory(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there"):
        convert.load_safetensors(path)
    with pytest.raises(FileNotFoundError, match="is a directory"):
        convert.load_safetensors(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "part"),
    [
        ({"config_class": "GPT"}, "unknown class 'GPT'"),
        ({"config": "{"}, "no usable MultiscreenConfig"),
        ({"config": "[1]"}, "holds a list; allowed: an object"),
        ({"config": json.dumps({"vocab_size": 13, "colour": 3})}, "colour"),
        ({"config": json.dumps(dataclasses.asdict(MULTISCREEN) | {"key_dim": 1})}, "key_dim"),
        ({"source": "multiscreen/pap"}, "did you mean multiscreen/paper"),
        ({"source": "transformer/hf-llama"}, "needs a TransformerConfig"),
    ],
)
def test_bad_metadata(path, metadata, part):
    good = {
        "source": "multiscreen/paper",
        "config_class": "MultiscreenConfig",
        "config": json.dumps(dataclasses.asdict(MULTISCREEN)),
    }
    arrays = convert.to_torch("multiscreen/paper", random_tree(MULTISCREEN), MULTISCREEN)
    save_file(arrays, path, metadata=good)
    convert.load_safetensors(path)
    save_file(arrays, path, metadata=good | metadata)
    with pytest.raises((ValueError, TypeError)) as caught:
        convert.load_safetensors(path)
    assert part in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unwritable(tmp_path):
    params = random_tree(MULTISCREEN)
    with pytest.raises(FileNotFoundError, match="no directory"):
        convert.save_safetensors(tmp_path / "no" / "w.safetensors", params, MULTISCREEN)
    with pytest.raises(IsADirectoryError, match="is a directory"):
        convert.save_safetensors(tmp_path, params, MULTISCREEN)
    with pytest.raises(TypeError, match="config must be a model's, got dict"):
        convert.save_safetensors(tmp_path / "w.safetensors", params, {})


def test_a_failed_save_leaves_the_old_file(path):
    before = saved(path)
    with pytest.raises(ValueError, match="missing"):
        convert.save_safetensors(path, {}, MULTISCREEN)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_numpy_scalars_are_fine(path):
    params = random_tree(MULTISCREEN)
    params["embedding"]["log_input_scale"] = np.float32(0.5)
    convert.save_safetensors(path, params, MULTISCREEN)
    assert convert.load_safetensors(path)[0]["embedding"]["log_input_scale"] == 0.5
