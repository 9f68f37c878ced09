"""What a person sees while a run goes on: a bar in a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from multiscreen_jax.train.errors import close_unwritable, short_reason, tell

_PLAIN_SECONDS = 10.0


class Reporter:
    """`say` prints a line; `update` reports a step, as a moving bar or now and then a line.

    Of several processes only the first speaks.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._speaks = jax.process_index() == 0
        self._last = -float("inf")
        self._bar = None
        if self._speaks and sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(),
            )
            self._task = self._bar.add_task("train", total=total, text="")
            self._bar.start()

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self._speaks:
            return
        try:
            if self._bar is not None:
                self._bar.console.print(text, markup=False, highlight=False)
            else:
                print(text, flush=True)
        except OSError as error:  # a log on a full disk, a reader that has gone
            self._speaks = False
            close_unwritable(sys.stdout)
            tell(f"warning: stdout cannot be written ({short_reason(error)}); the run goes on")

    def update(self, record: dict[str, Any]) -> None:
        """Progress after a step; `record` is its line of metrics."""
        text = summary(record)
        if self._bar is not None:
            self._bar.update(self._task, completed=record["step"], text=text)
        now = time.monotonic()
        last_step = record["step"] == self._total
        evaluated = "validation_loss" in record
        if self._bar is None and (now - self._last > _PLAIN_SECONDS or last_step or evaluated):
            self._last = now
            self.say(f"step {record['step']}/{self._total}  {text}")
        elif self._bar is not None and evaluated:
            self.say(f"step {record['step']}/{self._total}  {text}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def summary(record: dict[str, Any]) -> str:
    """One record in a few words."""
    parts = [f"loss {record['loss']:.4f}"]
    if "validation_loss" in record:
        parts.append(f"validation {record['validation_loss']:.4f}")
        if "validation_bits_per_byte" in record:
            parts.append(f"{record['validation_bits_per_byte']:.3f} bits/byte")
            if "validation_lost_share" in record:
                parts.append(f"{record['validation_lost_share']:.2%} of the bytes unknown")
        elif "validation_accuracy" in record:
            parts.append(f"accuracy {record['validation_accuracy']:.2%}")
    parts.append(f"lr {record['learning_rate']:.2e}")
    speeds = (name for name in record if name.endswith("_per_second"))
    parts += [
        f"{record[name]:,.0f} {name.removesuffix('_per_second')}/s"
        for name in speeds
        if name != "model_flops_per_second"
    ]
    parts.append(f"{record['model_flops_per_second'] / 1e9:,.1f} GFLOP/s")
    return "  ".join(parts)
