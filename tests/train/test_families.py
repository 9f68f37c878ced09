"""Every model family on eight devices, under meshes of every axis, against one device."""

import pytest

from tests.marks import slow_unless
from tests.programs import run_module
from tests.train.families import FAMILIES, MESHES, MORE

# Multiscreen's own axes, and those of states per head; the others divide alike.
SOME = ("multiscreen-tiny", "mamba2-mlp-tiny")


@pytest.mark.parametrize(
    "name", slow_unless((), FAMILIES, exhaustive=[name for name in FAMILIES if name not in SOME])
)
def test_meshes_train_alike_and_hold_their_shares(name):
    """Losses within 1e-12, gradients and parameters 1e-10; no device holds all of anything."""
    check(run_module("tests.train.families", name), MESHES)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FAMILIES)
def test_of_more_meshes(name):
    """One axis alone, and three."""
    check(run_module("tests.train.families", name, "more"), MORE)


def check(ended, meshes):
    assert len(ended.stdout.splitlines()) == len(meshes)
    # What the compiler says when it replicates an array to lay it out anew; of fake parameters it
    # only reckons what that would cost.
    said = [line for line in ended.stderr.splitlines() if "Involuntary full remat" in line]
    assert not [line for line in said if "fake_parameter" not in line]
