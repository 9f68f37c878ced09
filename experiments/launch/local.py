"""Starts a command as several processes of one run, all on this machine.

    python -m experiments.launch.local --processes 2 -- python -m experiments.train quickstart

The processes find each other through the environment (see multiscreen_jax.train.distributed). On
a pod or under SLURM each host starts the command itself and nothing of this is needed. SIGTERM is
passed on to all processes. Ends with 0 when all of them did.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence


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
    prog = "python -m experiments.launch.local"
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, required=True, help="how many")
    parser.add_argument("command", nargs="+", help="the command, after --")
    arguments = parser.parse_args()
    if arguments.processes < 1:
        parser.error(f"--processes is {arguments.processes}; allowed: an integer >= 1")
    running = start(arguments.command, arguments.processes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in running])
    codes = [process.wait() for process in running]
    for number, code in enumerate(codes):
        if code:
            how = signal.Signals(-code).name if code < 0 else f"code {code}"
            print(f"process {number} of {len(codes)} ended with {how}", file=sys.stderr)
    sys.exit(max(abs(code) for code in codes))


if __name__ == "__main__":
    main()
