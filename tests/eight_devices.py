"""Programs of their own process, which has eight devices made of one CPU."""

import os
import subprocess
import sys
from pathlib import Path

VARIABLES = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}


def run_module(module: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python -m module arguments...`, which must succeed."""
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **VARIABLES, **variables},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    return ended
