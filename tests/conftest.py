"""Shared set-up: CPU only, one persistent compilation cache, slow tests on request."""

import gc
import os
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.cpu_time import Recorder

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Subprocess tests inherit this, so a program that several of them run is compiled once.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "multiscreen-jax-test-cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Nearly all the time goes into compiling hundreds of programs that run for milliseconds. XLA's own
# passes stay; it is LLVM that optimises less.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # of operations: XLA copies them
# Programs as small as these are not worth dividing. The second flag halves what XLA needs for
# interpreted kernels, and a version that does not know a flag ends the process.
_FLAGS = "--xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith("0.10."):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _FLAGS)


COMPAT = Path(__file__).with_name("compat.txt")  # the names of the tests marked compat

# Tracing makes objects by the million and hardly any in cycles: looking for them at the default of
# every 700 takes a tenth of the time.
gc.set_threshold(200_000, 50, 100)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--cpu-time", metavar="FILE", help="write the CPU seconds of every test")


def pytest_configure(config):
    if config.getoption("--cpu-time"):
        config.pluginmanager.register(Recorder(config))


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config, items):
    compat = {line for line in COMPAT.read_text().splitlines() if not line.startswith("#")}
    for item in items:
        name = item.nodeid.removeprefix("tests/")
        parts = {name.partition(end)[0] for end in ("/", "::", "[")}
        if not compat.isdisjoint({name, *parts}):
            item.add_marker("compat")
    if any(arg.partition("::")[2] for arg in config.args):  # named one by one
        return
    wanted = config.getoption("-m") or ""
    left_out = {mark for mark in ("slow", "exhaustive") if mark not in wanted}
    if config.getoption("--slow") or "exhaustive" in wanted:  # some tests are both
        left_out.discard("slow")
    deselected = [item for item in items if not left_out.isdisjoint(item.keywords)]
    items[:] = [item for item in items if left_out.isdisjoint(item.keywords)]
    config.hook.pytest_deselected(items=deselected)


_PROGRAMS_KEPT = 100  # of so many tests at most


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Every compiled program takes some dozens of a process's 65530 memory maps, and a process
    without maps left dies: a file's programs go when it is done."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture(autouse=True, scope="session")
def interrupts_reach_children():
    """A shell that starts pytest in the background has it ignore SIGINT, and children would too."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def keep_signal_handlers():
    """A handler that a test leaves behind would fail whichever test comes next to this process."""
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
    before = {number: signal.getsignal(number) for number in watched}
    yield
    assert {number: signal.getsignal(number) for number in watched} == before


@pytest.fixture(autouse=True)
def forget_programs_of_many_tests(request):
    """Forgets compiled programs between tests too, in files of hundreds of tests."""
    yield
    module = request.node.getparent(pytest.Module)
    module.tests_done = getattr(module, "tests_done", 0) + 1
    if module.tests_done % _PROGRAMS_KEPT == 0:
        import jax

        jax.clear_caches()
