"""A place for metrics that training never waits for: behind a thread, with bounded patience."""

import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from multiscreen_jax.cleanup import afterwards
from multiscreen_jax.train.errors import short_reason

MOST_WAITING = 10_000  # records
LONGEST_CALL = 120.0  # seconds: opening a run at a slow service takes dozens
LAST_WAIT = 60.0  # seconds for what is left at the end
_FLUSH_EVERY = 30.0  # seconds


class Sink(Protocol):
    """A place that a thread writes into; each call may take long, or raise."""

    def write(self, record: dict[str, Any]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class SideSink:
    """Hands records to a sink's own thread. A sink that fails is named, once, and left out.

    It fails when it raises, when one call takes longer than LONGEST_CALL, and when more than
    MOST_WAITING records wait. Nothing here raises or waits, but `close`, for LAST_WAIT.
    """

    def __init__(self, name: str, make: Callable[[], Sink], say: Callable[[str], None]) -> None:
        self._name, self._make, self._say = name, make, say
        self._records: queue.Queue[dict[str, Any] | None] = queue.Queue(MOST_WAITING)
        self._left_out = False
        self._busy_since: float | None = time.monotonic()  # None while it waits for a record
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def write(self, record: dict[str, Any]) -> None:
        if self._left_out:
            return
        began = self._busy_since
        if began is not None and time.monotonic() - began > LONGEST_CALL:
            self._leave_out(f"no answer for {LONGEST_CALL:.0f} s")
            return
        try:
            self._records.put_nowait(record)
        except queue.Full:
            self._leave_out(f"{MOST_WAITING} records wait for it")

    def close(self) -> None:
        """Waits for what is left to be written, so long as the sink goes on."""
        if self._left_out:
            return
        try:
            self._records.put_nowait(None)
        except queue.Full:
            self._leave_out(f"{MOST_WAITING} records wait for it")
            return
        self._thread.join(LAST_WAIT)
        if self._thread.is_alive():
            self._leave_out(f"not done {LAST_WAIT:.0f} s after the end")

    def _leave_out(self, why: str) -> None:
        self._left_out = True
        self._say(f"{self._name} is left out from here on: {why}")

    def _work(self) -> None:
        try:
            self._write_all()
        except BaseException as error:  # a library may end its thread with SystemExit
            if not self._left_out:
                self._leave_out(short_reason(error))

    def _write_all(self) -> None:
        sink, flushed = self._make(), -math.inf
        with afterwards(sink.close):
            while (record := self._next()) is not None:
                sink.write(record)
                if time.monotonic() - flushed > _FLUSH_EVERY:
                    sink.flush()
                    flushed = time.monotonic()

    def _next(self) -> dict[str, Any] | None:
        self._busy_since = None
        record = self._records.get()
        self._busy_since = time.monotonic()
        return record
