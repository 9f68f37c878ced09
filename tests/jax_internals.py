"""What tests need of JAX that has no public name, all of it here."""

from jax._src.lib.mlir import ir
from jax._src.pallas.mosaic.interpret import interpret_pallas_call

__all__ = ["ir", "races_found"]


def races_found() -> bool:
    """Whether the last TPU kernel interpreted with `detect_races=True` had a race."""
    return interpret_pallas_call.races.races_found
