"""Copies stdin to stderr; at its end says in one line why the distributed runtime gave up.

`distributed` puts this program behind a training process's stderr, where it reads what JAX's
runtime writes before it ends the process. Run by its path: it imports nothing of JAX.
"""

import os
import re
import signal
import sys

_NO_PORT = "Failed to add port to server"
_GAVE_UP = "Terminating process because the JAX distributed service detected fatal errors"
_SILENT = re.compile(r"Task (\d+) heartbeat timeout|stopped sending heartbeats\):\s+(\d[\d,\s]*)")
_EARLY = re.compile(r"Shutdown barrier[^#]*#[^#]*first task at the barrier: (\d+)")
_TAIL = 1 << 16  # bytes; the runtime's message and its stack trace take a few thousand


def last_words(text: str, address: str, join_seconds: str, heartbeat_seconds: str) -> str | None:
    """One line about the end of a process that wrote `text`; None if the runtime did not end it."""
    if _NO_PORT in text:
        return f"process 0 cannot listen at {address}; allowed: a free port of its own host"
    _, gave_up, reason = text.partition(_GAVE_UP)
    if not gave_up:
        return None
    if "/RegisterTask" in reason:
        return (
            f"could not join the other processes at {address} within {join_seconds} s; start all "
            "of them, with one address"
        )
    again = "start the command again, on all hosts, to continue from the last checkpoint"
    if silent := _SILENT.search(reason):
        numbers = ", ".join(re.findall(r"\d+", silent[1] or silent[2]))
        return f"process {numbers} was lost, silent for {heartbeat_seconds} s; {again}"
    if early := _EARLY.search(reason):
        return f"process {early[1]} ended before the others; what it wrote before says why"
    if "Failed to send RPC to coordination service" in reason:
        # It may have ended because of another one, and then it has said so.
        return f"process 0, the coordinator at {address}, was lost or has ended; {again}"
    return None


def main(address: str, join_seconds: str, heartbeat_seconds: str) -> None:
    """Ends when the last holder of the pipe does; signals are for the training process.

    What the runtime writes once it gives up, a stack trace of C++, is passed on only where no line
    says it better.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    tail = waiting = b""
    while chunk := os.read(0, 1 << 16):
        tail = (tail + chunk)[-_TAIL:]
        waiting += chunk
        passed = _before_giving_up(waiting)
        _write_all(waiting[:passed])
        waiting = waiting[passed:]
    line = last_words(tail.decode(errors="replace"), address, join_seconds, heartbeat_seconds)
    _write_all(waiting if line is None else f"error: {line}\n".encode())


def _before_giving_up(text: bytes) -> int:
    """How much of the text to pass on: whole lines, before the one in which the runtime gives up.

    That line stays at the beginning of what is asked about next, so nothing after it is passed.
    """
    end = text.find(_GAVE_UP.encode())
    searched = len(text) if end < 0 else end
    return max(text.rfind(b"\n", 0, searched), text.rfind(b"\r", 0, searched)) + 1


def _write_all(text: bytes) -> None:
    while text:
        text = text[os.write(2, text) :]


if __name__ == "__main__":
    main(*sys.argv[1:])
