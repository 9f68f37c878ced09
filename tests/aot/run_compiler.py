"""Ahead-of-time compilers in processes of their own, with all their optimisations."""

import importlib.util

import pytest

from experiments.bench import gpu_compiler
from tests.programs import OPTIMIZED, run_module


def need_tpu_compiler() -> None:
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler: pip install -e '.[aot]'")


def need_gpu_compiler() -> None:
    if reason := gpu_compiler.missing():
        pytest.skip(reason)


def run_compiler(program: str, *arguments: str) -> str:
    """What `tests.aot.PROGRAM` printed; it must succeed."""
    return run_module(f"tests.aot.{program}", *arguments, variables=OPTIMIZED).stdout
