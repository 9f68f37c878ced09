"""`python -m experiments.export` writes what the run's model computes."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.configs import tiny
from multiscreen_jax import convert
from multiscreen_jax.models import build
from multiscreen_jax.train import override, train


def export(*arguments):
    command = [sys.executable, "-m", "experiments.export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_run_as_one_file(tmp_path):
    settings = dict(output_dir=str(tmp_path / "run"), steps=1, tensorboard=False)
    config = override(tiny.config(), train=settings, model=dict(implementation="reference"))
    trained = train(config).params
    ended = export(tmp_path / "run", tmp_path / "weights.safetensors")
    assert ended.returncode == 0, ended.stderr
    params, stored = convert.load_safetensors(tmp_path / "weights.safetensors")
    assert stored.trained_length == 32
    assert type(build(stored)).__name__ == "Multiscreen"
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(trained))

    ended = export(tmp_path / "run", tmp_path / "no" / "weights.safetensors")
    assert ended.returncode == 2
    assert "no directory" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
