"""Sharding tables, and training on eight devices against training on one."""

import dataclasses
import difflib
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from multiscreen_jax import sharding
from multiscreen_jax.layers.parameters import facts_of
from multiscreen_jax.models.registry import create
from multiscreen_jax.train import train
from multiscreen_jax.train.state import abstract_params
from tests.programs import EIGHT_DEVICES, OPTIMIZED, run_module
from tests.train import small

ROOT = Path(__file__).parents[2]


def abstract_mesh(data=1, fsdp=1, seq=1, model=1):
    return AbstractMesh((data, fsdp, seq, model), sharding.MESH_AXES, (AxisType.Auto,) * 4)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("multiscreen-4m", {}),
        ("transformer-8m", {}),
        ("transformer-8m", {"tie_embeddings": False, "final_norm_gain": True}),
    ],
)
def test_parameters_are_divided_by_their_axes(name, overrides):
    model, _ = create(name, **overrides)
    shardings = sharding.parameter_shardings(
        abstract_params(model), facts_of(model), abstract_mesh(model=2, fsdp=2)
    )
    specs = {
        sharding.path_name(path): leaf.spec
        for path, leaf in jax.tree_util.tree_flatten_with_path(shardings)[0]
    }
    if name == "multiscreen-4m":
        assert specs["layers/tiles/query"] == PartitionSpec(None, ("fsdp",), ("model",), None)
        assert specs["layers/tiles/log_window"] == PartitionSpec(None, ("model",))
        # 50257 is odd: the vocabulary stays whole.
        assert specs["embedding/rows"] == PartitionSpec(None, ("fsdp",))
    else:
        assert specs["layers/feed_forward/down"] == PartitionSpec(None, None, ("fsdp",))


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a TPU slice."""

    slice_index: int
    process_index: int
    id: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v4"


def test_slices_are_joined_by_data_and_then_by_fsdp():
    """Devices of two and of four slices of four chips, as a TPU reports them."""

    def devices(slices):
        return [Chip(n // 4, n // 4, n, (n % 2, n // 2 % 2, 0)) for n in range(4 * slices)]

    def slices_along(mesh, axis):
        rows = np.vectorize(lambda chip: chip.slice_index, otypes=[int])(mesh.devices)
        rows = np.moveaxis(rows, sharding.MESH_AXES.index(axis), -1)
        return {tuple(row) for row in rows.reshape(-1, mesh.shape[axis]).tolist()}

    mesh = sharding.make_mesh(2, 2, 1, 2, devices=devices(2))
    assert slices_along(mesh, "data") == {(0, 1)}
    assert slices_along(mesh, "fsdp") == slices_along(mesh, "model") == {(0, 0), (1, 1)}
    mesh = sharding.make_mesh(2, 4, 2, 1, devices=devices(4))
    assert slices_along(mesh, "data") == {(0, 2), (1, 3)}
    assert slices_along(mesh, "fsdp") == {(0, 0, 1, 1), (2, 2, 3, 3)}
    assert slices_along(mesh, "seq") == {(n, n) for n in range(4)}
    with pytest.raises(ValueError, match=r"mesh\.model 8: data and fsdp must divide over 2 slices"):
        sharding.make_mesh(1, 1, 1, 8, devices=devices(2))


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"fsdp": 8}, None),
        # The table of 50257 rows is most of this model.
        ({"model": 8}, r"each device holds 4.3 times .*: mesh.model 8 does not divide vocabulary"),
        (
            {"fsdp": 2, "model": 2},
            r"holds 1\.\d times .*: mesh.model 2 does not divide vocabulary 50257",
        ),
    ],
)
def test_a_mesh_that_does_not_divide_the_parameters_is_said(mesh, message):
    model, _ = create("multiscreen-28m")
    params, facts = abstract_params(model), facts_of(model)
    found = sharding.check_parameters(params, facts, abstract_mesh(**mesh))
    assert re.search(message, found) if message else found is None


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"fsdp": 6}, "mesh.fsdp is 6, .* allowed: a divisor of one of embed 256"),
        ({"model": 7}, "mesh.model is 7, .* heads 16, vocabulary 50257"),
    ],
)
def test_a_mesh_axis_that_divides_no_parameter_is_refused(mesh, message):
    model, _ = create("multiscreen-28m")
    with pytest.raises(ValueError, match=message) as error:
        sharding.check_parameters(abstract_params(model), facts_of(model), abstract_mesh(**mesh))
    assert "\n" not in str(error.value)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"a multiple of mesh\.data x mesh\.fsdp, 8"):
        sharding.check_batch(12, 64, abstract_mesh(data=4, fsdp=2))
    with pytest.raises(ValueError, match=r"length is 66; allowed: a multiple of mesh\.seq, 4"):
        sharding.check_batch(12, 66, abstract_mesh(seq=4))


def run_on_eight_devices(text, output, *options):
    """The train command."""
    run_module("experiments.train", *small.arguments(text, output, *options))


def losses_of(output):
    return np.array([record["loss"] for record in small.records(output)])


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one_and_one_can_continue(text, whole_run, tmp_path):
    mesh = ("--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.model", "2")
    run_on_eight_devices(text, tmp_path, "--train.steps", "5", *mesh)
    assert json.loads((tmp_path / "config.json").read_text())["mesh"]["fsdp"] == 2
    train(small.config(text, tmp_path))
    np.testing.assert_allclose(losses_of(tmp_path), losses_of(whole_run[0]), rtol=2e-5)


def collectives_of(*arguments):
    """What `tests.train.collectives` prints, of programs compiled as for a run."""
    variables = EIGHT_DEVICES | OPTIMIZED
    return run_module("tests.train.collectives", *arguments, variables=variables).stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["tiny", pytest.param("tiny_transformer", marks=pytest.mark.exhaustive)]
)
def test_fsdp_moves_parameters_and_never_a_whole_batch_of_activations(name):
    """Rows 8, length 64: a collective over [8, 64, ...] or [512, ...] would be of all rows."""
    exchanged = collectives_of(name, "8", "64")
    queries = r"all-gather f32\[16,(2,8|16)\]"  # one layer's, as they are needed
    assert re.search(queries, exchanged)
    assert not re.search(r"f32\[(8,64|512)\b", exchanged)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", [pytest.param("fsdp=8", marks=pytest.mark.exhaustive), "data=2,fsdp=2,model=2"]
)
def test_a_step_of_multiscreen_4b_exchanges_what_it_did(mesh):
    """All 64 layers at full width, shapes only: rows 16 in two parts, length 128."""
    golden = ROOT / "tests" / "train" / f"collectives_4b_{re.sub('[=,]', '_', mesh)}.txt"
    command = ("4b", "16", "128", mesh, "2")
    before, now = golden.read_text().splitlines(), collectives_of(*command).splitlines()
    difference = "\n".join(difflib.unified_diff(before, now, "before", "now", lineterm="", n=0))
    assert not difference, (
        "a training step of Multiscreen 4B now exchanges something else (runs per step and device "
        f"x kind, shape and number of devices):\n{difference}\nIf it is meant to: JAX_PLATFORMS="
        "cpu JAX_NUM_CPU_DEVICES=8 python -m tests.train.collectives "
        f"{' '.join(command)} > {golden.relative_to(ROOT)}"
    )


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1, 4, 2), marks=pytest.mark.slow),
        pytest.param((4, 1, 2), marks=pytest.mark.exhaustive),
        pytest.param((1, 2, 4), marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_moves_from_one_mesh_to_another(sizes, text, whole_run, tmp_path):
    data, fsdp, model = map(str, sizes)
    first = ("--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.model", "2")
    second = ("--mesh.data", data, "--mesh.fsdp", fsdp, "--mesh.model", model)
    run_on_eight_devices(text, tmp_path, "--train.steps", "5", *first)
    run_on_eight_devices(text, tmp_path, "--train.steps", "8", *second)
    np.testing.assert_allclose(losses_of(tmp_path), losses_of(whole_run[0])[:8], rtol=2e-5)
