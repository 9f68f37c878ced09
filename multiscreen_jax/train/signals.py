"""SIGTERM and SIGINT ask a run to stop at the next step boundary; the second one kills it.

Of several processes any may get the signal. JAX's runtime tells the others and finds a step that
none of them has made yet, and all stop after that one.
"""

import os
import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Context manager that catches the signals; `after` says when to stop.

    Signals can only be caught in the main thread; elsewhere (a notebook's worker) this does
    nothing.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._before: dict[int, signal.Handlers] = {}
        # Of several processes, JAX's runtime catches SIGTERM itself.
        self._several = jax.process_count() > 1
        self._caught = (signal.SIGINT,) if self._several else _SIGNALS

    def after(self, step: int) -> str | None:
        """The signal, or other reason, because of which a run stops after this step, or None.

        Every process has to ask after every step; all get the same answer.
        """
        if not self._several:
            return self._name
        return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else None

    def ask(self, why: str) -> None:
        """Stops the run as a signal would, for another reason."""
        if self._several:
            signal.raise_signal(signal.SIGTERM)
        else:
            self._name = why

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in self._caught:
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
        self._name = signal.Signals(number).name
        # os.write, because print is not safe in a signal handler.
        os.write(2, f"{self._name}: stops after a step; again to kill\n".encode())
        for other in self._caught:
            signal.signal(other, signal.SIG_DFL)
        if self._several:
            signal.raise_signal(signal.SIGTERM)
