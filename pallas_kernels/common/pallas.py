"""Pallas and its backends, imported when a kernel is built and not before.

JAX calls them experimental: one may move, or go. Then its kernels alone are missing, and say so.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu
    from jax.experimental.pallas import triton as plgpu

PALLAS = "jax.experimental.pallas"
BACKENDS = {"pallas_tpu": f"{PALLAS}.tpu", "pallas_gpu": f"{PALLAS}.triton"}


def load(module: str) -> Any:
    """The module; NotImplementedError if this JAX does not have it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise NotImplementedError(
            f"its kernels need {module}, which jax {jax.__version__} does not have here ({error})"
        ) from error


class _Module:
    """A module that is loaded when something of it is needed."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(load(self._name), attribute)


if not TYPE_CHECKING:
    pl = _Module(PALLAS)
    pltpu = _Module(BACKENDS["pallas_tpu"])
    plgpu = _Module(BACKENDS["pallas_gpu"])
