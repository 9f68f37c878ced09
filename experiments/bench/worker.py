"""The process in which one contender lives: builds its work once, then runs it when asked.

    python -m experiments.bench.worker '{"factory": "module:function", "arguments": {...}}'

`harness.Worker` starts it and speaks JSON lines with it: every line on standard input asks for one
run, every line on standard output answers. The function `factory(**arguments)` returns the work, a
callable whose result is a number (a loss, a logit) by which contenders are checked for equality,
and a dict of facts for the table.
"""

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable


def measure(work: Callable[[], float]) -> dict:
    """Run the work once: seconds of wall clock and of this process's CPU time, and its number."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"wall": wall, "cpu": cpu, "value": float(value)}


def memory() -> dict:
    """Resident bytes of this process, now and at their highest."""
    # Not ru_maxrss: a child starts with its parent's.
    with open("/proc/self/status") as status:
        kilobytes = {line.split(":")[0]: line.split()[1] for line in status if line[:2] == "Vm"}
    return {"rss": int(kilobytes["VmRSS"]) << 10, "peak": int(kilobytes["VmHWM"]) << 10}


def load_factory(name: str) -> Callable:
    """The function named by "module:function"."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def failure(error: BaseException) -> str:
    """One line for the table."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "allocate memory" in text or "Out of memory" in text:
        return "out of memory"
    return f"{type(error).__name__}: {text}"[:200]


def main() -> None:
    settings = json.loads(sys.argv[1])
    # Libraries print: keep the channel to ourselves and send what they say to standard error.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # Before any library is loaded: XLA and PyTorch size their pools by the cores they may use.
    os.sched_setaffinity(0, settings["cores"])
    if settings["memory_limit"]:
        # A contender that needs more fails here instead of driving the machine out of memory.
        resource.setrlimit(resource.RLIMIT_DATA, (settings["memory_limit"],) * 2)
    try:
        work, facts = load_factory(settings["factory"])(**settings["arguments"])
        print(json.dumps({"facts": facts, **memory()}), file=channel)
        for _ in sys.stdin:
            print(json.dumps({**measure(work), **memory()}), file=channel)
    except Exception as error:
        print(json.dumps({"error": failure(error)}), file=channel)
        raise


if __name__ == "__main__":
    main()
