"""The commit that a result comes from."""

import subprocess
from pathlib import Path

_ROOT = Path(__file__).parents[2]
# Pages and tables change no result: to commit them does not make the code another.
_CODE = (
    "experiments",
    "multiscreen_jax",
    "pallas_kernels",
    ":(exclude,glob)**/results/**",
    ":(exclude)experiments/paper/figures",
    ":(exclude)experiments/paper/RESULTS.md",
)


def commit() -> str:
    """The newest commit that changed code; "+" if the checkout's code differs from it.

    Files that git does not know count: Python reads them like any other.
    """
    changed = _git("status", "--porcelain", "--untracked-files=all", "--", *_CODE)
    newest = _git("log", "-1", "--format=%H", "--", *_CODE)[:10]
    return (newest or "unknown") + ("+" if changed else "")


def _git(*arguments: str) -> str:
    ended = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True)
    return ended.stdout.strip()
