"""Programs of their own process, which may have eight devices made of one CPU."""

import os
import subprocess
import sys
from pathlib import Path

EIGHT_DEVICES = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
# Compiled as for a run, and not as conftest.py has it; libtpu does not know the CPU's flags.
OPTIMIZED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false", "XLA_FLAGS": ""}


def run_module(
    module: str, *arguments: str, variables: dict[str, str] = EIGHT_DEVICES
) -> subprocess.CompletedProcess[str]:
    """`python -m module arguments...`, which must succeed."""
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    return ended
