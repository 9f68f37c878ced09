"""Runs a study's commands, and goes on where an earlier attempt was cut off."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.paper.commit import commit
from experiments.paper.study import Run
from multiscreen_jax.json_files import read_object

LOG = "log.txt"
UNKNOWN = "an unknown one"  # commit of a folder that names none


class RunFailed(RuntimeError):
    """A run has no results; the message says why."""


@dataclass(frozen=True)
class Executed:
    """What a run's commands took, over all attempts, and the commit that they ran at."""

    seconds: float
    commit: str


def execute(run: Run, folder: Path) -> Executed:
    """Runs what is left of a run's commands, and before them of the runs that it needs.

    A command that ended is not started again. One that was cut off is, and a training run then
    continues from its last checkpoint: the seconds before count too.

    Raises:
      RunFailed: a command failed (the message has the end of its output) or was stopped; the folder
        holds results of other commands, or was begun at another commit.
    """
    clocks = [_Clock(path, command) for path, command in commands(run, folder)]
    left = [clock for clock in clocks if not clock.ended]
    now = commit()
    commits = {clock.commit for clock in clocks if clock.commit} | ({now} if left else set())
    if len(commits) > 1 or UNKNOWN in commits:
        raise RunFailed(
            f"{folder} was begun at another commit ({', '.join(sorted(commits))}; this is {now}); "
            "check that one out to go on, or start anew with --again"
        )
    for clock in left:
        print(f"python -m {clock.command}", flush=True)
        clock.commit = now
        _call(clock)
    return Executed(sum(clock.seconds for clock in clocks), next(iter(commits), now))


def commands(run: Run, folder: Path) -> Iterator[tuple[Path, str]]:
    """A run's commands, after those of the runs it needs, each with the file that has its time."""
    for needed in run.needs:
        yield from commands(needed, folder.parent / needed.name)
    for number, command in enumerate(run.commands):
        yield folder / f"command_{number}.json", command.format(run=folder, runs=folder.parent)


def move_away(folder: Path) -> None:
    """Renames a run's folder, so that the run starts anew; nothing is deleted."""
    if folder.exists():
        earlier = sum(1 for _ in folder.parent.glob(f"{folder.name}.old*"))
        folder.rename(folder.with_name(f"{folder.name}.old{earlier + 1}"))


_KEPT = {"command": str, "seconds": float, "ended": bool}


class _Clock:
    """Seconds spent on a command, over all attempts, and its commit, kept in a file."""

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.command = path, command
        self.seconds, self.ended, self.commit = 0.0, False, ""
        if path.exists():
            kept = read_object(path, keys=_KEPT)
            if kept["command"] != command:
                raise RunFailed(
                    f"{path.parent} holds results of another command, {kept['command']!r}; "
                    "start anew with --again, or give another --folder"
                )
            self.seconds, self.ended = kept["seconds"], kept["ended"]
            self.commit = kept.get("commit", UNKNOWN)

    def save(self, seconds: float, ended: bool) -> None:
        self.seconds, self.ended = seconds, ended
        kept = {name: getattr(self, name) for name in ("command", "seconds", "ended", "commit")}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(kept), encoding="utf-8")
        part.replace(self.path)


_SAVE_EVERY = 5.0  # seconds


def _call(clock: _Clock) -> None:
    before, start = clock.seconds, time.monotonic()
    log = clock.path.parent / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    clock.save(before, ended=False)
    words = shlex.split(clock.command)
    with log.open("ab") as output:
        output.write(f"$ python -m {clock.command}\n".encode())
        output.flush()
        process = subprocess.Popen([sys.executable, "-m", *words], stdout=output, stderr=output)
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
    whole = process.returncode == 0 and _reached_its_end(words)
    clock.save(before + time.monotonic() - start, ended=whole)
    if process.returncode:
        end = log.read_text(errors="replace").splitlines()[-12:]
        raise RunFailed(f"python -m {clock.command} failed:\n" + "\n".join(end))
    if not whole:
        raise RunFailed(f"python -m {clock.command} was stopped; run it again to go on")


def _reached_its_end(words: list[str]) -> bool:
    """Whether a training run took all its steps: one that a signal stopped ends with 0, too."""
    if words[0] != "experiments.train":
        return True
    folder = Path(words[words.index("--train.output-dir") + 1])
    steps = read_object(folder / "config.json", keys={"train": dict})["train"]["steps"]
    last = (folder / "metrics.jsonl").read_text().splitlines()[-1]  # the last step always has one
    return read_object(last, str(folder / "metrics.jsonl"))["step"] == steps
