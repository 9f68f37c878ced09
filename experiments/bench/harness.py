"""Fair timing of contenders on one machine: a process each, taking turns.

Every contender lives in a worker process, so that each can have its own allocator settings and its
own peak memory. All workers are built and warmed up first; then rounds go through them, one run
each, so that a slow moment of the machine falls on all of them. Wall time and the process's CPU
time are kept for every run: on a busy machine the second is the one to trust.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MEGABYTE = 2**20

# glibc gives every array above 32 MB fresh pages and takes them back when it is freed: the page
# faults are most of the time of PyTorch code that holds T x T maps. Kept pages avoid that.
_KEEP_PAGES = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_ARENA_MAX": "1",
}
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "tuned": _KEEP_PAGES,
    "tuned, huge pages": {**_KEEP_PAGES, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
}


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
        name: its row in the table.
        factory: "module:function", see `worker`.
        arguments: of the factory; JSON.
        allocator: a key of ALLOCATORS.
        repeats: times the factory's work does the thing to be timed; results are for one.
    """

    name: str
    factory: str
    arguments: dict[str, Any] = field(default_factory=dict)
    allocator: str = "default"
    repeats: int = 1

    @property
    def label(self) -> str:
        return f"{self.name} ({self.allocator})"


@dataclass(frozen=True)
class Timing:
    """How contenders are run.

    Attributes:
        rounds: timed runs of each contender.
        warmups: untimed runs after every start of a worker.
        threads: cores the workers may use, all the same ones. 1 pins them to one core.
        pause: seconds between runs, in which the last worker's threads go to sleep.
        keep_mb: a worker that stays larger than this is stopped after its turn, and started and
            warmed up again for the next, so that the others keep their memory.
        memory_limit_gb: a contender that needs more than this fails, with that result. 0: no limit.
    """

    rounds: int = 5
    warmups: int = 1
    threads: int = 1
    pause: float = 0.2
    keep_mb: int = 2500
    memory_limit_gb: float = 0

    def __post_init__(self) -> None:
        cores = len(os.sched_getaffinity(0))
        if not 1 <= self.threads <= cores:
            raise ValueError(f"threads must be in [1, {cores}] here, got {self.threads}")
        for name, least in (("rounds", 1), ("warmups", 0), ("pause", 0), ("memory_limit_gb", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")


class Run(NamedTuple):
    """One timed run: seconds, and the number the work returned."""

    wall: float
    cpu: float
    value: float


@dataclass
class Result:
    """What was measured of one contender.

    Attributes:
        runs: in order of the rounds, each for one repeat.
        first_value: the number its very first run returned.
        facts: what its factory said.
        peak: largest resident memory of its processes, in bytes.
        failure: why there are no runs, or no more of them.
    """

    contender: Contender
    runs: list[Run] = field(default_factory=list)
    first_value: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    peak: int = 0
    failure: str | None = None

    def median(self, clock: str) -> float:
        """Median seconds by the clock "wall" or "cpu"; infinite if nothing was measured."""
        return statistics.median([getattr(run, clock) for run in self.runs] or [float("inf")])

    def fastest(self, clock: str) -> float:
        return min((getattr(run, clock) for run in self.runs), default=float("inf"))


class WorkerError(RuntimeError):
    """A contender could not be built or run; the message says why, in one line."""


class Worker:
    """A running worker process."""

    def __init__(self, contender: Contender, timing: Timing) -> None:
        settings = {
            "factory": contender.factory,
            "arguments": contender.arguments,
            "memory_limit": int(timing.memory_limit_gb * 2**30),
            "cores": sorted(os.sched_getaffinity(0))[-timing.threads :],
        }
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "OMP_NUM_THREADS": str(timing.threads),
            **ALLOCATORS[contender.allocator],
        }
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.bench.worker", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            cwd=ROOT,
            text=True,
        )
        try:
            self.facts = self._answer()["facts"]
        except BaseException:
            self.stop()
            raise

    def run(self) -> dict[str, Any]:
        """One run: "wall", "cpu" in seconds, "value", and "rss", "peak" in bytes."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        said = [line.strip() for line in self._log if line.strip()]
        cause = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return f"{cause}: {said[-1][:200]}" if said else cause


class _Turns:
    """One contender's worker, which comes and goes, and what it has measured."""

    def __init__(self, contender: Contender, timing: Timing) -> None:
        self.result = Result(contender)
        self._timing = timing
        self._worker: Worker | None = None

    def warm_up(self) -> None:
        """Build the worker and run it untimed."""
        if self._worker is None and self.result.failure is None:
            self._guarded(self._start)

    @property
    def label(self) -> str:
        return self.result.contender.label

    def take(self) -> Run | None:
        """One timed run; None if the contender has failed."""
        self.warm_up()
        answer = self._guarded(self._run) if self._worker is not None else None
        if answer is None:
            return None
        repeats = self.result.contender.repeats
        run = Run(answer["wall"] / repeats, answer["cpu"] / repeats, answer["value"])
        self.result.runs.append(run)
        self.release()
        return run

    def release(self) -> None:
        """Stop the worker if it keeps much memory."""
        if self._worker is not None and self._resident > self._timing.keep_mb * MEGABYTE:
            self.stop()

    def stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _start(self) -> None:
        self._resident = 0
        self._worker = Worker(self.result.contender, self._timing)
        self.result.facts = self._worker.facts
        for _ in range(self._timing.warmups):
            self._run()

    def _run(self) -> dict[str, Any]:
        answer = self._worker.run()
        self._resident = answer["rss"]
        self.result.peak = max(self.result.peak, answer["peak"])
        if self.result.first_value is None:
            self.result.first_value = answer["value"]
        return answer

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except WorkerError as error:
            self.result.failure = str(error)
            self.stop()
            return None


def run_interleaved(
    contenders: Sequence[Contender], timing: Timing, report: Callable[[str], None] = lambda _: None
) -> list[Result]:
    """Time all contenders, in rounds of one run each; results in the order given.

    A contender that fails keeps its reason in `Result.failure` and the others go on.
    """
    turns = [_Turns(contender, timing) for contender in contenders]
    try:
        for turn in turns:
            turn.warm_up()
            turn.release()
            report(f"{turn.label}: {turn.result.failure or 'ready'}")
        for number in range(timing.rounds):
            report(f"round {number + 1} of {timing.rounds}")
            for turn in turns:
                time.sleep(timing.pause)
                run = turn.take()
                if run is not None:
                    report(f"  {turn.label}: {run.cpu * 1e3:.4g} ms CPU, {run.wall * 1e3:.4g} wall")
    finally:
        for turn in turns:
            turn.stop()
    return [turn.result for turn in turns]


def check_same_values(results: Sequence[Result], tolerance: float) -> None:
    """Raise ValueError unless the contenders' first numbers agree to this relative tolerance."""
    values = [(r.contender.label, r.first_value) for r in results if r.first_value is not None]
    finite = [value for _, value in values if math.isfinite(value)]
    middle = statistics.median(finite) if finite else 0.0
    wrong = [(k, v) for k, v in values if not abs(v - middle) <= tolerance * abs(middle)]
    if wrong:
        raise ValueError(
            f"contenders compute different things: the median is {middle!r}, but "
            + ", ".join(f"{label} has {value!r}" for label, value in wrong)
        )


def best(results: Sequence[Result], clock: str = "cpu") -> Result | None:
    """The fastest by median, of those that ran."""
    return min((r for r in results if r.runs), key=lambda r: r.median(clock), default=None)
