"""Starts a command as several processes of one run, all on this machine.

    python -m experiments.launch.local --processes 2 -- python -m experiments.train quickstart

The processes find each other through the environment (see multiscreen_jax.train.distributed). On
a pod or under SLURM each host starts the command itself and nothing of this is needed. SIGTERM is
passed on to all processes. Ends with 0 when all of them did.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from multiscreen_jax.train import checks, one_line_errors, options

PROGRAM = "python -m experiments.launch.local"


@dataclass(frozen=True)
class Settings:
    """How to start the command after --."""

    processes: int
    """How many."""

    def __post_init__(self):
        checks.integer("--processes", self.processes, 1)


def start(command: Sequence[str], processes: int, **options) -> list[subprocess.Popen]:
    """The started processes, number 0 first; `options` are those of subprocess.Popen."""
    address = f"127.0.0.1:{_free_port()}"
    environment = options.pop("env", os.environ)

    def variables(number: int) -> dict[str, str]:
        named = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
        return {**environment, **named, "JAX_PROCESS_ID": str(number)}

    return [
        subprocess.Popen(command, env=variables(number), **options) for number in range(processes)
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    """Waits for all; what a terminal sends (Ctrl-C) reaches the processes without our help."""
    words, command = sys.argv[1:], []
    if "--" in words:
        place = words.index("--")
        words, command = words[:place], words[place + 1 :]
    with one_line_errors():
        settings = options.read(Settings, prog=PROGRAM, description=__doc__, args=words)
        if not command:
            raise ValueError("no command is given; allowed: --processes N -- COMMAND ...")
        running = _started(command, settings.processes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in running])
    codes = [process.wait() for process in running]
    for number, code in enumerate(codes):
        if code:
            how = signal.Signals(-code).name if code < 0 else f"code {code}"
            print(f"process {number} of {len(codes)} ended with {how}", file=sys.stderr)
    sys.exit(max(abs(code) for code in codes))


def _started(command: Sequence[str], processes: int) -> list[subprocess.Popen]:
    try:
        return start(command, processes)
    except (OSError, ValueError) as error:  # no such program, no program, or a NUL in a word
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{command[0]!r} cannot be started: {reason}") from None


if __name__ == "__main__":
    main()
