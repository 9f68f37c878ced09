"""Silences what Orbax's and TensorStore's threads print of a save that failed.

The save raises the same error, and the command says it in one line. The threads print hundreds of
lines around it: the error's tracebacks, that their event loop is closed, tasks that nobody asks,
coroutines that cannot be ended while Python shuts down.
"""

import functools
import logging
import os
import sys
from types import CoroutineType
from typing import Any

_ORBAX = f"{os.sep}orbax{os.sep}"


@functools.cache
def keep_quiet() -> None:
    """Stops printing these from now on; everything else is printed as before."""
    logging.getLogger("absl").addFilter(_is_news)
    logging.getLogger("asyncio").addFilter(_is_of_others)
    sys.unraisablehook = _filtered(sys.unraisablehook)


def _is_news(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or _ORBAX not in record.pathname


def _is_of_others(record: logging.LogRecord, words: Any = ("orbax", "tensorstore")) -> bool:
    # A task is printed with its code's file, a future with an error that names the save's folder.
    text = record.getMessage()
    return not any(word in text for word in words)


def _filtered(before: Any) -> Any:
    # Called when modules may be empty already: everything it needs is bound here.
    def hook(given: Any, orbax: str = _ORBAX, coroutine: type = CoroutineType) -> None:
        of_orbax = isinstance(given.object, coroutine) and orbax in given.object.cr_code.co_filename
        closed = given.object is None and str(given.exc_value) == "Event loop is closed"
        if not (of_orbax or closed):
            before(given)

    return hook
