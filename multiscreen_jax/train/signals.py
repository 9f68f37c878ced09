"""SIGTERM and SIGINT ask a run to stop at the next step boundary; the second one kills it."""

import os
import signal
import threading
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Context manager; `.name` is the signal that arrived, or None.

    Signals can only be caught in the main thread; elsewhere (a notebook's worker) this does
    nothing.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, signal.Handlers] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._arrived)  # pyright: ignore
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        # os.write, because print is not safe in a signal handler.
        os.write(2, f"{self.name}: stops after this step; again to kill\n".encode())
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_DFL)
