"""Ahead-of-time compilers in processes of their own, with all their optimisations."""

from tests.programs import OPTIMIZED, run_module


def run_compiler(program: str, *arguments: str) -> str:
    """What `tests.aot.PROGRAM` printed; it must succeed."""
    return run_module(f"tests.aot.{program}", *arguments, variables=OPTIMIZED).stdout
