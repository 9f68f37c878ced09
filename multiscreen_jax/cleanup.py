"""Clean-up that never hides what went wrong before it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def afterwards(close: Callable[[], object]) -> Iterator[None]:
    """Calls `close` at the end. An error that is under way then stays the one that is reported."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            close()
        raise
    close()
