"""Runs a study's commands, and goes on where an earlier attempt was cut off."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from experiments.paper.study import Run

LOG = "log.txt"


def execute(run: Run, folder: Path) -> float:
    """Runs what is left of a run's commands; returns the seconds that all of them took.

    A command that ended is not started again. One that was cut off is, and a training run then
    continues from its last checkpoint: the seconds before count too.

    Raises:
      RuntimeError: a command failed; the message has the end of its output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seconds = 0.0
    for number, command in enumerate(run.commands):
        clock = _Clock(folder / f"command_{number}.json", command.format(run=folder))
        if not clock.ended:
            print(f"python -m {clock.command}", flush=True)
            _call(clock, folder / LOG)
        seconds += clock.seconds
    return seconds


class _Clock:
    """Seconds spent on a command, over all attempts, kept in a file."""

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.command = path, command
        self.seconds, self.ended = 0.0, False
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["command"] != command:
                raise RuntimeError(
                    f"{path.parent} holds results of another command, {kept['command']!r}; "
                    "delete that folder, or give another --folder"
                )
            self.seconds, self.ended = kept["seconds"], kept["ended"]

    def save(self, seconds: float, ended: bool) -> None:
        self.seconds, self.ended = seconds, ended
        kept = {"command": self.command, "seconds": seconds, "ended": ended}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(kept))
        part.replace(self.path)


_SAVE_EVERY = 5.0  # seconds


def _call(clock: _Clock, log: Path) -> None:
    before, start = clock.seconds, time.monotonic()
    with log.open("ab") as output:
        output.write(f"$ python -m {clock.command}\n".encode())
        output.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", *shlex.split(clock.command)], stdout=output, stderr=output
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(_SAVE_EVERY)
                except subprocess.TimeoutExpired:
                    clock.save(before + time.monotonic() - start, ended=False)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    clock.save(before + time.monotonic() - start, ended=process.returncode == 0)
    if process.returncode:
        end = log.read_text(errors="replace").splitlines()[-12:]
        raise RuntimeError(f"python -m {clock.command} failed:\n" + "\n".join(end))
