"""SLURM clusters of GPUs: one process a GPU, as JAX finds them."""

from __future__ import annotations

import re

from experiments.launch.commands import (
    GRACE_SECONDS,
    PATH,
    WORD,
    Command,
    check,
    check_grace,
    check_integer,
    check_training,
)

SCRIPT = "experiments/launch/train.sbatch"
TIME = re.compile(r"(?:([0-9]+)-)?([0-9]{1,2}):([0-9]{2}):([0-9]{2})")
JOB = re.compile(r"[1-9][0-9]*")


def run(
    nodes: int,
    gpus_per_node: int,
    training: tuple[str, ...],
    time: str = "24:00:00",
    partition: str | None = None,
    account: str | None = None,
    python: str = "python",
    grace_seconds: int = GRACE_SECONDS,
) -> list[Command]:
    """Submits the training command after --; at its time limit the job saves and goes on later.

    Args:
      nodes: how many machines.
      gpus_per_node: how many GPUs of each; as many processes.
      training: the experiment and its options.
      time: limit of one stretch, such as 24:00:00.
      partition: where to (default: the cluster's).
      account: to whom it counts (default: yours).
      python: the interpreter of an environment that all nodes see.
      grace_seconds: how long before its time limit the job begins to save.
    """
    check_integer("--nodes", nodes, 1)
    check_integer("--gpus-per-node", gpus_per_node, 1)
    check("--time", time, TIME, "hours:minutes:seconds, or days-hours:minutes:seconds")
    check_grace(grace_seconds)
    if _seconds(time) <= grace_seconds:
        allowed = f"more than --grace-seconds, {grace_seconds}"
        raise ValueError(f"--time is {time!r}; allowed: {allowed}")
    check("--python", python, PATH, "a path of letters, digits and - _ . / ~")
    optional = []
    for flag, word in (("--partition", partition), ("--account", account)):
        if word is not None:
            check(flag, word, WORD, "letters, digits and - _ .")
            optional.append(f"{flag}={word}")
    check_training(training, mounted=False)
    sizes = [f"--nodes={nodes}", f"--gpus-per-node={gpus_per_node}"]
    sizes += [f"--ntasks-per-node={gpus_per_node}", f"--time={time}"]
    grace = f"--signal=B:USR1@{grace_seconds}"
    export = f"--export=ALL,PYTHON={python},GRACE_SECONDS={grace_seconds}"
    return [["sbatch", *sizes, *optional, grace, export, SCRIPT, *training]]


def status(job: str) -> list[Command]:
    """Says what state a job is in."""
    check("--job", job, JOB, "the number that `run` printed")
    return [["squeue", f"--jobs={job}"]]


def logs(job: str) -> list[Command]:
    """Follows the output of a job, in the folder where it was submitted."""
    check("--job", job, JOB, "the number that `run` printed")
    return [["tail", "-n", "100", "-F", f"multiscreen-{job}.log"]]


def stop(job: str) -> list[Command]:
    """Asks a run to save and end at the next step."""
    check("--job", job, JOB, "the number that `run` printed")
    return [["scancel", "--signal=TERM", job]]


def delete(job: str) -> list[Command]:
    """Cancels a job, waiting or running."""
    check("--job", job, JOB, "the number that `run` printed")
    return [["scancel", job]]


def _seconds(time: str) -> int:
    found = TIME.fullmatch(time)
    assert found is not None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 60 * (60 * (24 * days + hours) + minutes) + seconds
