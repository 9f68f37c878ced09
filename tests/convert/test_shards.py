"""Safetensors in shards, as hubs have them, and files whose headers promise too much."""

import dataclasses
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from multiscreen_jax import convert
from multiscreen_jax.convert.stored import StoredTensor
from multiscreen_jax.values import to_plain
from tests.convert.trees import MULTISCREEN, TRANSFORMER, assert_same, config_for, random_tree

SOURCE = "transformer/hf-llama"
INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, params): three shards and their index."""
    folder = tmp_path_factory.mktemp("hub")
    params = random_tree(TRANSFORMER)
    write_shards(folder, convert.to_torch(SOURCE, params, TRANSFORMER))
    return folder, params


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "hf")
    return tmp_path / "hf"


def write_shards(folder, tensors):
    names, held = sorted(tensors), {}
    for number, shard in enumerate(SHARDS):
        part = {name: tensors[name] for name in names[number::3]}
        save_file(part, folder / shard, metadata={"format": "pt"})
        held |= dict.fromkeys(part, shard)
    write_index(folder, held)


def write_index(folder, held):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": held}))


def weight_map(folder):
    return json.loads((folder / INDEX).read_text())["weight_map"]


def load(path):
    return convert.load_safetensors(path, SOURCE, TRANSFORMER)[0]


@pytest.mark.parametrize("given", ["folder", "index", "folder without an index", "single file"])
def test_a_model_in_shards_is_read(folder, made, given):
    if given == "folder without an index":
        (folder / INDEX).unlink()
    if given == "single file":
        shutil.rmtree(folder)
        folder.mkdir()
        tensors = convert.to_torch(SOURCE, made[1], TRANSFORMER)
        save_file(tensors, folder / "model-00001-of-00001.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"PK")  # the same weights again, left alone
    assert_same(load(folder / INDEX if given == "index" else folder), made[1])


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_in_shards(tmp_path, made, dtype):
    tensors = convert.to_torch(SOURCE, made[1], TRANSFORMER)
    write_shards(tmp_path, {name: x.astype(dtype) for name, x in tensors.items()})
    config = dataclasses.replace(TRANSFORMER, param_dtype=np.dtype(dtype).name)
    loaded, _ = convert.load_safetensors(tmp_path, SOURCE, config)
    assert_same(loaded, random_tree(TRANSFORMER, dtype=dtype))


def test_tensors_are_read_one_at_a_time(folder, monkeypatch):
    """Memory holds the result, and not the shards as well."""
    alive, most = set(), 0
    read = StoredTensor.__array__

    class Watched(np.ndarray):
        def __array_finalize__(self, other):
            alive.add(id(self))

        def __del__(self):
            alive.discard(id(self))

    def watched(self, dtype=None, copy=None):
        nonlocal most
        tensor = read(self).view(Watched)
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(StoredTensor, "__array__", watched)
    load(folder)
    assert len(weight_map(folder)) > 8
    assert 0 < most <= 4


def cut(folder):
    path = folder / SHARDS[1]
    path.write_bytes(path.read_bytes()[:-7])


def pointer(folder):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"
    (folder / SHARDS[1]).write_text(text)


def in_two_shards(folder):
    tensors = convert.to_torch(SOURCE, random_tree(TRANSFORMER), TRANSFORMER)
    save_file(tensors, folder / SHARDS[0])


def listed_elsewhere(folder):
    held = weight_map(folder)
    name = next(name for name, shard in held.items() if shard == SHARDS[0])
    write_index(folder, held | {name: SHARDS[1]})


def two_models(folder):
    shutil.copy(folder / SHARDS[0], folder / "model.safetensors")


def two_indexes(folder):
    shutil.copy(folder / INDEX, folder / "model.fp16.safetensors.index.json")


def pickles(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


def pickled_shard(folder):
    (folder / SHARDS[1]).write_bytes(b"PK\x03\x04" + bytes(100))


def no_index_and_one_missing(folder):
    (folder / INDEX).unlink()
    (folder / SHARDS[2]).unlink()


def other_map(**held):
    return lambda folder: write_index(folder, weight_map(folder) | held)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / SHARDS[1]).unlink(), "3 shards, of which 1 are not there: 'model-00002"),
        (cut, "model-00002-of-00003.safetensors cannot be read as safetensors"),
        (pointer, "model-00002-of-00003.safetensors is a git-lfs pointer"),
        (lambda f: (f / SHARDS[1]).write_bytes(b""), "model-00002.* cannot be read as safetensors"),
        (lambda f: (f / SHARDS[1]).write_bytes(b"\xff" * 99), "model-00002.*header too large"),
        (pickled_shard, "model-00002.*it is a pickle"),
        (in_two_shards, "is in model-00001-of-00003.safetensors too; allowed: one shard"),
        (listed_elsewhere, "is not in model-00002-of-00003.safetensors, which should hold it"),
        (other_map(extra=SHARDS[0]), "'extra' is not in model-00001"),
        (other_map(extra="../x.safetensors"), "'../x.safetensors'; allowed: the name of a"),
        (other_map(extra="/etc/passwd"), "'/etc/passwd'; allowed: the name of a"),
        (other_map(extra="a\0b.safetensors"), "allowed: the name of a"),
        (other_map(extra="\ud800.safetensors"), r"not there: '\\ud800"),
        (other_map(extra=7), "is in 7; allowed: the name of a"),
        (other_map(extra="pytorch_model.bin"), "'pytorch_model.bin', a pickle"),
        (lambda f: (f / INDEX).write_text("[" * 10**5), "index.json: JSON that cannot be read"),
        (lambda f: (f / INDEX).write_text("{}"), "index.json: lacks weight_map"),
        (lambda f: write_index(f, {}), "weight_map is empty"),
        (two_models, "has model.safetensors.index.json and model.safetensors; allowed: one"),
        (two_indexes, "has model.fp16.safetensors.index.json and model.safetensors.index.json"),
        (pickles, "without a safetensors file; pytorch_model.bin is a pickle"),
        (no_index_and_one_missing, "has 2 of 3 shards; missing: shard 3"),
    ],
)
def test_folders_that_are_not_whole(folder, damage, said):
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_one_shard_says_which_it_is(folder):
    with pytest.raises(ValueError, match=r"is shard 2 of 3; give their folder or its index: .*mis"):
        load(folder / SHARDS[1])


@pytest.mark.parametrize("path", ["a\0b", "", None, 3, "\ud800"])
def test_paths_that_are_none(path):
    with pytest.raises(ValueError, match=r"^path is .*; allowed: "):
        convert.load_safetensors(path)
    with pytest.raises(ValueError, match=r"^path is .*; allowed: "):
        convert.save_safetensors(path, {}, MULTISCREEN)


@pytest.mark.parametrize("source", convert.sources())
@pytest.mark.parametrize("layers", [10**9, 2**62, 2**64, -1, 1.5])
def test_a_header_that_promises_many_layers(tmp_path, source, layers):
    config = config_for(source)
    metadata = {
        "source": source,
        "config_class": type(config).__name__,
        "config": json.dumps(to_plain(config) | {"num_layers": layers}),
    }
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=r"x\.safetensors.*(num_layers|64 bits)") as caught:
        convert.load_safetensors(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", ["[" * 10**5, '{"a": ' * 10**5, " " * (1 << 21)])
def test_stored_configs_that_are_none(tmp_path, config):
    metadata = {"source": SOURCE, "config_class": "TransformerConfig", "config": config}
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="holds no usable TransformerConfig") as caught:
        convert.load_safetensors(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
