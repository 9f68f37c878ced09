"""Factories for the harness's workers: small, odd and broken ones."""

import os
import signal
import time


def _note(log, text):
    with open(log, "a") as file:
        file.write(f"{text} ")


def logging(log, label):
    """Writes down when it is built and when it runs."""
    _note(log, f"+{label}")

    def work():
        _note(log, label)
        return 1.0

    return work, {"label": label}


def large(log, megabytes):
    """Holds this much memory for as long as it lives."""
    _note(log, "start")
    held = bytearray(b"x" * (megabytes << 20))
    return lambda: len(held), {}


def environment(variable):
    return lambda: float(os.environ.get(variable, -1)), {}


def cores():
    return lambda: len(os.sched_getaffinity(0)), {}


def busy(seconds):
    """Uses no CPU for so long."""
    return lambda: time.sleep(seconds) or 0, {}


def unbuildable():
    raise ValueError("cannot be\nbuilt")


def failing_later(runs):
    """Works this many times."""
    left = [runs]

    def work():
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("worn out")
        print("libraries print")
        return 0.0

    return work, {}


def killed():
    return lambda: os.kill(os.getpid(), signal.SIGKILL), {}
