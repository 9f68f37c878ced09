"""Ahead-of-time compilers in processes of their own, with all their optimisations."""

import os
import subprocess
import sys


def run_compiler(program: str, *arguments: str) -> str:
    """What `tests.aot.PROGRAM` printed; it must succeed."""
    ended = subprocess.run(
        [sys.executable, "-m", f"tests.aot.{program}", *arguments],
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "false"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout
