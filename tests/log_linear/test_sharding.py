"""The log-linear ops under meshes of eight devices against one device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Programs that run once are cheaper to run than to optimise.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"


@pytest.mark.slow
def test_ops_and_their_gradients_are_divided_over_rows_and_heads():
    ended = subprocess.run(
        [sys.executable, "-m", "tests.log_linear.sharded"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "XLA_FLAGS": FLAGS},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert len(ended.stdout.splitlines()) == 7
