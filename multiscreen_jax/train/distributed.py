"""Several processes that train as one: joined by JAX's distributed runtime.

The runtime also watches them. When one is lost it ends the others from C++, where no Python runs
any more; `last_words` then says in one line which process that was.
"""

import collections
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from multiscreen_jax import sharding
from multiscreen_jax.train.config import MeshConfig

_LAST_PORT = 65535
_LONGEST_WAIT_MS = 24 * 3600 * 1000  # the runtime ends it when a process is lost
_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# What JAX reads of a cluster, for the line that names what was found.
_CLUSTER = re.compile(
    r"SLURM_(JOB_ID|STEP_NODELIST|NTASKS|PROCID|LOCALID)|OMPI_COMM_WORLD_\w*(SIZE|RANK)"
    r"|MEGASCALE_\w+|TPU_WORKER_\w+|JAX_(COORDINATOR_\w+|NUM_PROCESSES|PROCESS_ID|LOCAL_DEVICE_IDS)"
)
_NO_CLUSTER = "coordinator_address should be defined"  # JAX's words where it finds none


def initialize(mesh: MeshConfig) -> None:
    """Joins the run's other processes, if there are any; must come before JAX touches a device.

    The environment says which they are: JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID, or else what JAX itself finds (TPU pods, SLURM, Open MPI,
    Kubernetes). Where nothing says so there is one process, and nothing happens.

    A process that cannot join within mesh.join_seconds, or cannot listen, is ended by the runtime;
    its last line names the address.

    Raises:
      ValueError: the variables, these or a cluster's, are incomplete or not possible.
    """
    count, index = _named_processes()
    if count == 1:
        return
    address = os.environ.get(_ADDRESS)
    give_back_stderr = _watch_stderr(address or "the address that JAX found", mesh)
    try:
        jax.distributed.initialize(
            num_processes=count,
            process_id=index,
            initialization_timeout=mesh.join_seconds,
            heartbeat_timeout_seconds=mesh.heartbeat_seconds,
            # A process that ends with an error waits so long for the others, then ends them. By
            # then a lost process has been noticed, which may be where the error is from.
            shutdown_timeout_seconds=2 * mesh.heartbeat_seconds,
        )
    except (ValueError, TypeError, KeyError) as error:  # from reading variables
        give_back_stderr()
        if _NO_CLUSTER in str(error):
            return
        # Anything else must not pass for "one process": each host would train alone, all of them
        # into one folder.
        raise ValueError(f"{_found(os.environ)} ({error})") from None
    sharding.divide_cpu(mesh.cpu_devices)  # the next line makes JAX count devices
    line = _idle_gpus(os.environ, jax.default_backend(), jax.local_device_count())
    if line is not None:
        print(f"warning: {line}", file=sys.stderr, flush=True)
    if jax.process_count() == 1:
        give_back_stderr()
        return
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        each = ", ".join(f"process {number} has {counts[number]}" for number in sorted(counts))
        raise ValueError(
            f"mesh.cpu-devices or the hosts' accelerators differ: of the devices {each}; allowed: "
            "as many in every process"
        )
    print(f"process {jax.process_index()} of {jax.process_count()}", flush=True)


def wait_for_all(what: str) -> None:
    """Until every process has come to `what`; nothing where there is one.

    Called before the first exchange of arrays after work that may take one process much longer
    than another: on CPUs (gloo) an exchange that is new gives up after 30 seconds.
    """
    ocp.multihost.get_barrier_sync_fn()(key=what, timeout_ms=_LONGEST_WAIT_MS)


def _named_processes() -> tuple[int | None, int | None]:
    """How many processes and which is this, if the variables say so; the address is JAX's to read.

    Raises:
      ValueError: they say only a part, or something that cannot be.
    """
    given = {name: os.environ[name] for name in (_COUNT, _INDEX) if name in os.environ}
    if not given:
        return None, None
    count, index = (given.get(name, "") for name in (_COUNT, _INDEX))
    host, _, port = os.environ.get(_ADDRESS, "").rpartition(":")
    if not count.isdecimal() or not index.isdecimal() or not int(index) < int(count):
        allowed = f"{_INDEX} from 0 to {_COUNT} - 1, both set"
        raise ValueError(f"{_COUNT} is {count!r} and {_INDEX} is {index!r}; allowed: {allowed}")
    possible = port.isascii() and port.isdecimal() and 0 < int(port) <= _LAST_PORT
    if int(count) > 1 and not (host and possible):
        address = os.environ.get(_ADDRESS)
        allowed = f"the host:port of process 0, a port from 1 to {_LAST_PORT}"
        raise ValueError(f"{_ADDRESS} is {address!r}; allowed: {allowed}")
    return int(count), int(index)


def _found(environment: Mapping[str, str]) -> str:
    """The variables that say who the processes are, and what would be right."""
    names = sorted(name for name in environment if _CLUSTER.fullmatch(name))
    found = ", ".join(f"{name} is {environment[name]!r}" for name in names)
    allowed = f"each process's number, from 0, below how many there are; or {_ADDRESS}, "
    return f"{found or 'a cluster'}; allowed: {allowed}{_COUNT} and {_INDEX}"


def _idle_gpus(environment: Mapping[str, str], backend: str, devices: int) -> str | None:
    """One line if this node has GPUs that none of its SLURM tasks uses, each having `devices`."""
    given, tasks = environment.get("SLURM_GPUS_ON_NODE", ""), _tasks_on_node(environment)
    if backend != "gpu" or not given.isdecimal() or tasks is None:
        return None
    if int(given) <= tasks * devices or environment.get("SLURM_LOCALID", "0") != "0":
        return None  # or the node's first task says it
    return (
        f"SLURM_GPUS_ON_NODE is {given}, and {tasks} task(s) on this node use {devices} each; "
        f"for one process a GPU: srun --ntasks-per-node={given}"
    )


def _tasks_on_node(environment: Mapping[str, str]) -> int | None:
    """How many tasks srun started on this node, of a list such as 8(x4),2; None outside srun."""
    tasks: list[int] = []
    for word in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", word)
        if found is None:
            return None
        tasks += [int(found[1])] * int(found[2] or 1)
    number = environment.get("SLURM_NODEID", "")
    return tasks[int(number)] if number.isdecimal() and int(number) < len(tasks) else None


def _watch_stderr(address: str, mesh: MeshConfig) -> Callable[[], None]:
    """Sends this process's stderr through `last_words`; returns the function that ends that."""
    program = Path(__file__).with_name("last_words.py")
    words = [address, str(mesh.join_seconds), str(mesh.heartbeat_seconds)]
    reader, writer = os.pipe()
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", str(program), *words],
        stdin=reader,
        start_new_session=True,  # a Ctrl-C is not for it
    )
    sys.stderr.flush()
    before = os.dup(2)
    os.dup2(writer, 2)
    os.close(reader)
    os.close(writer)

    def give_back() -> None:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)
        watcher.wait()

    return give_back
