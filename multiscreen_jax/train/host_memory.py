"""Keeps the memory of one training step for the next, on CPUs."""

import ctypes
import importlib.util
import sys

import jax

# malloc.h: what mallopt may set.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


# Packages that bring JAX an accelerator: CUDA, ROCm and Metal come as parts of the first.
_ACCELERATORS = ("jax_plugins", "libtpu")


def runs_on_cpu() -> bool:
    """Whether JAX can only run on the CPU, said before it starts.

    That is when JAX_PLATFORMS is cpu, and otherwise when no accelerator's package is installed. A
    machine that has such a package and no accelerator counts as having one.
    """
    if platforms := jax.config.values["jax_platforms"]:
        return platforms == "cpu"
    return not any(importlib.util.find_spec(name) for name in _ACCELERATORS)


def keep_freed_memory() -> None:
    """Tells glibc not to give freed memory back to the kernel.

    A step on a CPU allocates and frees some hundred megabytes. By default each of these blocks is
    mapped, zeroed page by page by the kernel, and unmapped again, a third of the step's time for a
    small model. Does nothing with another C library. Call before JAX starts its threads.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for setting, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1)):
        mallopt(setting, value)
