"""Every model family on eight devices, under meshes of every axis, against one device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.families import FAMILIES, MESHES


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_meshes_train_alike_and_hold_their_shares(name):
    """Loss curve within 2e-6, gradients 1e-4, parameters 1e-5; no device holds all tokens."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.train.families", name],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert len(ended.stdout.splitlines()) == len(MESHES)
    # What the compiler says when it replicates an array to lay it out anew.
    assert "Involuntary full rematerialization" not in ended.stderr
