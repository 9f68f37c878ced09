"""How a command that prepares tokens shows how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Report = Callable[[int, int, int], None]  # bytes read, documents, tokens


class ProgressReport:
    """Context of one part: a bar in a terminal, a line every few seconds elsewhere."""

    SECONDS = 5.0

    def __init__(self, console: Console, name: str, total: int):
        self._console, self._name, self._total = console, name, max(1, total)
        columns = ("{task.description}", BarColumn(), "{task.percentage:>3.0f}%")
        self._bar = None
        if console.is_terminal:
            counts = TextColumn("{task.fields[counts]}")
            self._bar = Progress(*columns, counts, TimeRemainingColumn(), console=console)

    def __enter__(self) -> Report:
        self._begin = self._last = time.monotonic()
        self._state = (0, 0, 0)
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._total, counts="")
        return self.report

    def report(self, consumed: int, documents: int, tokens: int) -> None:
        self._state = (consumed, documents, tokens)
        if self._bar is not None:
            self._bar.update(self._task, completed=consumed, counts=self._counts())
        elif time.monotonic() - self._last >= self.SECONDS:
            self._last = time.monotonic()
            self._print_line()

    def __exit__(self, kind, *_) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._print_line()

    def _counts(self) -> str:
        _, documents, tokens = self._state
        return f"{documents:,} documents, {tokens:,} tokens"

    def _print_line(self) -> None:
        share = 100 * self._state[0] / self._total
        seconds = time.monotonic() - self._begin
        self._console.print(
            f"{self._name}: {share:.0f}% {self._counts()} {seconds:.1f} s", highlight=False
        )
