"""Errors with an exit code of their own, and the one line that a person sees for the others.

1  anything unforeseen, such as a link that failed: starting again may help
2  a setting, data, or a file that cannot be used: it will not
3  a loss that is not finite: it will not
4  a checkpoint, or another file of a run, that could not be written: it may, when the storage is
   there again
"""

import errno
import io
import logging
import os
import re
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from multiscreen_jax.ownership import FolderInUse

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
# What the file system says of a file that a person chose, in whichever library.
_FILE_ERRORS = (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_PLATFORMS = ".xla_bridge"  # the module in which JAX starts platforms
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class NonFiniteLoss(ArithmeticError):
    """Training met a loss or gradient that is not finite and was told to stop."""

    exit_code = 3


class NotWritten(RuntimeError):
    """A file of a run could not be written (a full disk, ...); the cause is chained."""

    exit_code = 4


class CheckpointNotSaved(NotWritten):
    """A checkpoint could not be written."""


class EndedTogether(RuntimeError):
    """Another process of the run ended with an error, so that all do, with its code."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class PlatformNotStarted(ValueError):
    """JAX_PLATFORMS asks for a platform that this machine does not have."""

    exit_code = 2


def is_ours(error: BaseException) -> bool:
    """Whether the error tells the user something: raised by this library, or about a file."""
    if isinstance(error, NonFiniteLoss | NotWritten | FolderInUse | EndedTogether):
        return True
    if is_full_disk(error) or _names_a_file(error):
        return True
    if not isinstance(error, (*_USER_ERRORS, *_FILE_ERRORS)):
        return False
    if isinstance(error, ImportError) and error.name is not None:
        return False  # raised by an import statement
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = frames[-1].f_globals.get("__name__", "") if frames else ""
    if module == "__main__":
        module = frames[-1].f_globals.get("__package__") or ""
    return module.split(".")[0] in _OURS


def is_full_disk(error: BaseException) -> bool:
    """Whether the disk, or its share of one user, has no bytes or no files left."""
    return isinstance(error, OSError) and error.errno in _FULL_DISK


def _names_a_file(error: BaseException) -> bool:
    """Whether the system refuses a file, and says which."""
    if not isinstance(error, OSError) or error.filename is None:
        return False
    return isinstance(error, _FILE_ERRORS) or error.errno == errno.EROFS


def exit_code(error: BaseException) -> int:
    """The code with which a command ends because of this error."""
    if is_full_disk(error):
        return NotWritten.exit_code
    return getattr(error, "exit_code", 2 if is_ours(error) else 1)


def short_reason(error: BaseException) -> str:
    """Why something could not be written, in one line: the system's own words where it has some."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"[Errno {error.errno}] {error.strerror}"
    text = str(error)
    if found := re.search(r"os_error_code='(\d+)'", text):  # TensorStore's
        return f"[Errno {found[1]}] {os.strerror(int(found[1]))}"
    return (text or type(error).__name__).splitlines()[0]


@contextmanager
def writing(what: object) -> Iterator[None]:
    """Makes what the storage refuses in here a NotWritten that names `what`."""
    try:
        yield
    except OSError as error:
        raise NotWritten(f"could not write {what}: {short_reason(error)}") from error


@contextmanager
def one_line_errors() -> Iterator[None]:
    """For command lines: our errors print `error: ...` and exit with 2 (or their own code).

    Everything else keeps its traceback: it is a bug, and whoever reports it needs it. Where the
    reader of a pipe has gone, as `head` does, the command ends without a word. Characters that a
    stream cannot encode are written as escapes.
    """
    import jax

    # With frames of JAX left out of tracebacks, its errors would look like ours.
    jax.config.update("jax_traceback_filtering", "off")
    # A platform that is installed and cannot start is told of by JAX, with a traceback.
    for name in [name for name in logging.root.manager.loggerDict if name.endswith(_PLATFORMS)]:
        logging.getLogger(name).addFilter(_in_one_line)
    for stream in _streams():
        if isinstance(stream, io.TextIOWrapper):  # not a notebook's
            with suppress(OSError):  # met again, and told of, at the end
                stream.reconfigure(errors="backslashreplace")
    try:
        with _one_line_warnings():
            yield
            for stream in _streams():  # what they refuse is told of as the other errors
                stream.flush()
    except SystemExit:
        _close_refusing_streams()
        raise
    except Exception as error:
        unread = any(map(_is_unread, _streams()))
        _close_refusing_streams()
        if isinstance(error, BrokenPipeError) and unread:
            sys.exit(128 + signal.SIGPIPE)  # as the signal would have it
        if not is_ours(error) and (error := _platform_error(error)) is None:
            raise
        tell(f"error: {error}")
        sys.exit(exit_code(error))


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Warnings of this library, without the line of its code that gave them."""
    as_before, packages = warnings.formatwarning, Path(__file__).parents[2]
    ours = tuple(f"{packages / name}{os.sep}" for name in _OURS)

    def show(message: Any, category: type, filename: str, *where: Any, **more: Any) -> str:
        if filename.startswith(ours):
            return f"warning: {message}\n"
        return as_before(message, category, filename, *where, **more)

    warnings.formatwarning = show
    try:
        yield
    finally:
        warnings.formatwarning = as_before


def tell(line: str) -> None:
    """Prints on stderr, if that can be written: it may be a log on the disk that is full."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        close_unwritable(sys.stderr)


def close_unwritable(stream: TextIO) -> None:
    """Sends what a stream still holds nowhere: when Python ends it would try again, and the exit
    code would be that of the failure."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _streams() -> list[TextIO]:
    """stdout and stderr, less what was closed when Python began."""
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]


def _is_unread(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose reader has gone."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), select.POLLOUT)
    except OSError:  # a notebook's
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _close_refusing_streams() -> None:
    """Drops what stdout and stderr still hold if it cannot be written."""
    for stream in _streams():
        try:
            stream.flush()
        except OSError:
            close_unwritable(stream)


def _in_one_line(record: logging.LogRecord) -> bool:
    """A filter of log records that says why in place of a traceback."""
    if record.exc_info and record.exc_info[1] is not None:
        reason, *_ = str(record.exc_info[1]).splitlines() or [record.exc_info[0].__name__]
        record.msg, record.args = f"{record.getMessage()}: {reason}", ()
        record.exc_info = record.exc_text = None
    return True


def _platform_error(error: BaseException) -> PlatformNotStarted | None:
    """The error that says which platform JAX_PLATFORMS asks for and why it does not start."""
    asked = os.environ.get("JAX_PLATFORMS")
    modules = (
        frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)
    )
    if not asked or not any(name.endswith(_PLATFORMS) for name in modules):
        return None
    reason, *_ = str(error).splitlines() or [type(error).__name__]
    return PlatformNotStarted(
        f"JAX_PLATFORMS is {asked!r}, which does not start here: {reason}; allowed: nothing (the "
        "best there is), cpu, or what this machine has"
    )
