"""Errors with an exit code of their own, and the one line that a person sees for the others.

1  anything unforeseen, such as a link that failed: starting again may help
2  a setting, or data, that cannot be used: it will not
3  a loss that is not finite: it will not
4  a checkpoint that could not be written: it may, when the storage is there again
"""

import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_OURS = ("multiscreen_jax", "pallas_kernels", "experiments")
_USER_ERRORS = (
    ValueError,
    TypeError,
    FileNotFoundError,
    NotImplementedError,
    IndexError,
    FloatingPointError,
    ImportError,
)


class NonFiniteLoss(ArithmeticError):
    """Training met a loss or gradient that is not finite and was told to stop."""

    exit_code = 3


class CheckpointNotSaved(RuntimeError):
    """A checkpoint could not be written (a full disk, ...); the cause is chained."""

    exit_code = 4


class RunWarning(UserWarning):
    """Something about a run that whoever reads it should know; commands print it in one line."""


def is_ours(error: BaseException) -> bool:
    """Whether this library raised the error itself, to tell the user something."""
    if isinstance(error, NonFiniteLoss | CheckpointNotSaved):
        return True
    if not isinstance(error, _USER_ERRORS):
        return False
    if isinstance(error, ImportError) and error.name is not None:
        return False  # raised by an import statement
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = frames[-1].f_globals.get("__name__", "") if frames else ""
    if module == "__main__":
        module = frames[-1].f_globals.get("__package__") or ""
    return module.split(".")[0] in _OURS


@contextmanager
def one_line_errors() -> Iterator[None]:
    """For command lines: our errors print `error: ...` and exit with 2 (or their own code).

    Everything else keeps its traceback: it is a bug, and whoever reports it needs it.
    """
    import jax

    # With frames of JAX left out of tracebacks, its errors would look like ours.
    jax.config.update("jax_traceback_filtering", "off")
    try:
        with _one_line_warnings():
            yield
    except Exception as error:
        if not is_ours(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    as_before = warnings.formatwarning

    def show(message: Any, category: type, *where: Any, **more: Any) -> str:
        if issubclass(category, RunWarning):
            return f"warning: {message}\n"
        return as_before(message, category, *where, **more)

    warnings.formatwarning = show
    try:
        yield
    finally:
        warnings.formatwarning = as_before
