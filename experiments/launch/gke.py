"""GKE clusters of TPUs, through xpk."""

from __future__ import annotations

import re
import shlex
from typing import Annotated

import tyro

from experiments.launch.commands import (
    BUCKET,
    DATA,
    GRACE_SECONDS,
    NAME,
    RUNS,
    Command,
    Place,
    check,
    check_grace,
    check_integer,
    check_training,
)

Here = Annotated[Place, tyro.conf.arg(name="")]
TPU_TYPE = re.compile(r"(v4|v5litepod|v5p|v6e)-[1-9][0-9]*|tpu7x-[1-9][0-9]*(x[1-9][0-9]*)*")
IMAGE = re.compile(r"[a-z0-9][-_./a-z0-9]*:[-_.a-zA-Z0-9]+")
ALLOWED_TYPE = "v4-N, v5litepod-N, v5p-N, v6e-N or tpu7x-N"
ALLOWED_IMAGE = "a lower-case path and its tag, such as us-docker.pkg.dev/project/repo/run:1"
DOCKERFILE = "experiments/launch/Dockerfile"
# Of a process that ended with an error xpk restarts 42 and 127 to 255 by itself. An error that no
# one foresaw (a link that failed) is 1, a checkpoint that could not be written is 4; settings that
# cannot be used (2) and a loss that is not finite (3) would end the same way again.
RESTARTED = "1,4"
RUNS_GIGABYTES = 2560  # the smallest BASIC_SSD


def create(
    place: Here,
    tpu_type: str,
    spot: bool = False,
    reservation: str | None = None,
) -> list[Command]:
    """Makes a cluster with one slice (on demand, if nothing else is said).

    Args:
      place: the cluster's name, zone and project.
      tpu_type: of the slice, such as v5p-256 or tpu7x-128.
      spot: cheaper, and may be taken away at any time.
      reservation: take it from this reservation.
    """
    check("--tpu-type", tpu_type, TPU_TYPE, ALLOWED_TYPE)
    if spot and reservation is not None:
        raise ValueError("--spot and --reservation are both given; allowed: one of them")
    capacity = "--spot" if spot else "--on-demand"
    if reservation is not None:
        check("--reservation", reservation, NAME, "a reservation's name")
        capacity = f"--reservation={reservation}"
    drivers = ["--enable-gcsfuse-csi-driver", "--enable-gcpfilestore-csi-driver"]
    what = [f"--tpu-type={tpu_type}", "--num-slices=1", capacity, *drivers]
    return [["xpk", "cluster", "create", *_cluster(place), *what]]


def install(image: str) -> list[Command]:
    """Builds an image of this checkout and pushes it.

    Args:
      image: where to, with a tag; a new tag for every change.
    """
    check("--image", image, IMAGE, ALLOWED_IMAGE)
    return [
        ["docker", "build", f"--file={DOCKERFILE}", f"--tag={image}", "."],
        ["docker", "push", image],
    ]


def mount(place: Here, bucket: str | None = None, runs_gigabytes: int = 0) -> list[Command]:
    """Lets every workload mount data and runs: a bucket at /mnt/data, to read; NFS at /mnt/runs.

    Args:
      place: the cluster.
      bucket: Cloud Storage bucket, without gs://.
      runs_gigabytes: size of a new Filestore instance for the runs, at least 2560; 0 for none.
    """
    if bucket is None and not runs_gigabytes:
        raise ValueError("nothing to mount is given; allowed: --bucket, --runs-gigabytes, or both")
    commands = []
    if bucket is not None:
        check("--bucket", bucket, BUCKET, "a bucket's name, without gs://")
        what = ["--type=gcsfuse", f"--bucket={bucket}", "--size=1", "--readonly=true"]
        where = [f"--mount-point={DATA}", "--auto-mount=true"]
        commands.append(["xpk", "storage", "attach", "data", *_cluster(place), *what, *where])
    if runs_gigabytes:
        if runs_gigabytes < RUNS_GIGABYTES:
            allowed = f"0, or {RUNS_GIGABYTES} and above"
            raise ValueError(f"--runs-gigabytes is {runs_gigabytes}; allowed: {allowed}")
        # Written at 350 MB/s; BASIC_HDD takes 100.
        what = ["--type=gcpfilestore", f"--size={runs_gigabytes}", "--tier=BASIC_SSD"]
        what += ["--vol=runs", "--access-mode=ReadWriteMany", "--readonly=false"]
        where = [f"--mount-point={RUNS}", "--auto-mount=true"]
        commands.append(["xpk", "storage", "create", "runs", *_cluster(place), *what, *where])
    return commands


def run(
    place: Here,
    workload: str,
    tpu_type: str,
    image: str,
    training: tuple[str, ...],
    max_restarts: int = 50,
    grace_seconds: int = GRACE_SECONDS,
) -> list[Command]:
    """Submits the training command after --; interrupted, it is restarted and continues.

    Args:
      place: the cluster.
      workload: a name for the job.
      tpu_type: of the cluster's slice.
      image: what `install` pushed.
      training: the experiment and its options.
      max_restarts: how often, before it counts as failed.
      grace_seconds: from the signal that ends a pod to its end, time for a checkpoint.
    """
    _check_workload(workload)
    check("--tpu-type", tpu_type, TPU_TYPE, ALLOWED_TYPE)
    check("--image", image, IMAGE, ALLOWED_IMAGE)
    check_integer("--max-restarts", max_restarts, 0)
    check_grace(grace_seconds)
    check_training(training, mounted=True)
    # xpk runs the command in a subshell and signals that: exec puts the script in its place.
    script = ["bash", "experiments/launch/supervise.sh", "python", "-m", "experiments.train"]
    return [
        [
            *("xpk", "workload", "create", *_cluster(place)),
            *(f"--workload={workload}", f"--tpu-type={tpu_type}", "--num-slices=1"),
            *(f"--docker-image={image}", f"--max-restarts={max_restarts}"),
            f"--restart-on-exit-codes={RESTARTED}",
            f"--termination-grace-period-seconds={grace_seconds}",
            f"--command=exec {shlex.join([*script, *training])}",
        ]
    ]


def status(place: Here) -> list[Command]:
    """Lists the cluster's workloads and their states."""
    return [["xpk", "workload", "list", *_cluster(place)]]


def logs(place: Here, workload: str) -> list[Command]:
    """Follows the output of a workload's host 0, which reports the run."""
    _check_workload(workload)
    # xpk's clusters are regional.
    region = [f"--region={place.zone.rpartition('-')[0]}", *place.flags()[1:]]
    selector = f"xpk.google.com/workload={workload},batch.kubernetes.io/job-completion-index=0"
    return [
        ["gcloud", "container", "clusters", "get-credentials", place.name, *region],
        ["kubectl", "logs", "--follow", "--tail=100", f"--selector={selector}"],
    ]


def stop(place: Here, workload: str) -> list[Command]:
    """Ends a workload; it saves before. `run` with the same training command continues it."""
    _check_workload(workload)
    return [["xpk", "workload", "delete", *_cluster(place), f"--workload={workload}", "--force"]]


def delete(place: Here) -> list[Command]:
    """Deletes the cluster and its machines."""
    return [["xpk", "cluster", "delete", *_cluster(place), "--force"]]


def _check_workload(workload: str) -> None:
    check("--workload", workload, NAME, "lowercase letters, digits and hyphens, a letter first")


def _cluster(place: Place) -> list[str]:
    return [f"--cluster={place.name}", *place.flags()]
