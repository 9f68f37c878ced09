"""CPU time of the tests, by folder: of their processes and of every process they wait for.

`pytest --cpu-time=FILE` writes the seconds of every test to the file, as JSON. As a command this
adds up such files and prints their folders:

    python -m tests.cpu_time FILE... --warn-above 105 --fail-above 135
"""

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

OUTSIDE = "(imports, collection)"  # what no test takes


def cpu_seconds() -> float:
    """User and system time of this process so far, and of its children that have ended."""
    return sum(os.times()[:4])


# -- in pytest -------------------------------------------------------------------------------------


class Recorder:
    """A pytest plugin: the seconds of one process's tests; where that distributes them, of all."""

    def __init__(self, config):
        self.config = config
        self.seconds = Counter()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        before = cpu_seconds()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] += cpu_seconds() - before

    def pytest_sessionfinish(self):
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["cpu_time"] = dict(self.seconds)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        self.seconds.update(getattr(node, "workeroutput", {}).get("cpu_time", {}))

    def pytest_unconfigure(self):
        if not hasattr(self.config, "workeroutput"):  # its workers have ended, and count in full
            self.seconds[OUTSIDE] = cpu_seconds() - self.seconds.total()
            Path(self.config.getoption("--cpu-time")).write_text(json.dumps(self.seconds))


# -- the command -----------------------------------------------------------------------------------


def folder_of(test: str) -> str:
    """The folder below `tests` of a test's name; a file there stands for itself."""
    path = test.partition("::")[0].removeprefix("tests/")
    return path.partition("/")[0]


def main(argv: list[str] | None = None) -> int:
    """Print the minutes by folder; 1 if there are more than allowed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--warn-above", type=float, metavar="MINUTES", default=float("inf"))
    parser.add_argument("--fail-above", type=float, metavar="MINUTES", default=float("inf"))
    parser.add_argument("--most", type=int, metavar="N", default=0, help="first the N functions")
    options = parser.parse_args(argv)
    runs, functions = [], Counter()
    for file in options.files:
        minutes = Counter()
        for test, seconds in json.loads(file.read_text()).items():
            minutes[folder_of(test)] += seconds / 60
            functions[test.partition("[")[0]] += seconds / 60
        runs.append(minutes)
    for function, minutes in functions.most_common(options.most):
        print(f"  {minutes:8.2f} {function}")
    total = sum(runs, Counter())
    print("CPU minutes by folder:", *(file.stem for file in options.files))
    for folder, _ in total.most_common():
        print(f"  {folder:24s}", *(f"{minutes[folder]:8.2f}" for minutes in runs))
    print(f"  {'all':24s}", *(f"{minutes.total():8.2f}" for minutes in runs))
    spent = total.total()
    for limit, word in ((options.fail_above, "FAILED"), (options.warn_above, "WARNING")):
        if spent > limit:
            print(f"{word}: the tests took {spent:.1f} CPU minutes, more than {limit:g}")
            return int(word == "FAILED")
    return 0


if __name__ == "__main__":
    sys.exit(main())
