"""Errors with an exit code of their own, and the one line that a person sees for the others.

1  anything unforeseen, such as a link that failed: starting again may help
2  a setting, or data, that cannot be used: it will not
3  a loss that is not finite: it will not
4  a checkpoint that could not be written: it may, when the storage is there again
"""

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

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
    # A platform that is installed and cannot start is told of by JAX, with a traceback.
    logging.getLogger("jax._src.xla_bridge").addFilter(_in_one_line)
    try:
        yield
    except Exception as error:
        if not is_ours(error) and (error := _platform_error(error)) is None:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))


def _in_one_line(record: logging.LogRecord) -> bool:
    """A filter of log records that says why in place of a traceback."""
    if record.exc_info and record.exc_info[1] is not None:
        reason, *_ = str(record.exc_info[1]).splitlines() or [record.exc_info[0].__name__]
        record.msg, record.args = f"{record.getMessage()}: {reason}", ()
        record.exc_info = record.exc_text = None
    return True


def _platform_error(error: BaseException) -> ValueError | None:
    """What a platform that JAX_PLATFORMS asks for, and that does not start, is to the user."""
    asked = os.environ.get("JAX_PLATFORMS")
    frames = (
        frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)
    )
    if not asked or "jax._src.xla_bridge" not in frames:
        return None
    reason, *_ = str(error).splitlines() or [type(error).__name__]
    return ValueError(
        f"JAX_PLATFORMS is {asked!r}, which does not start here: {reason}; allowed: nothing (the "
        "best there is), cpu, or what this machine has"
    )
