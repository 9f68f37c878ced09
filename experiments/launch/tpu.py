"""Cloud TPU VMs: one slice, the same command on all its hosts."""

from __future__ import annotations

import re
import shlex
from typing import Annotated

import tyro

from experiments.launch.commands import (
    BUCKET,
    DATA,
    RUNS,
    Command,
    Place,
    check,
    check_training,
)

Here = Annotated[Place, tyro.conf.arg(name="")]
ACCELERATOR = re.compile(r"(v4|v5litepod|v5p|v6e)-[1-9][0-9]*")
SHARE = re.compile(r"[0-9]+(\.[0-9]+){3}:/[-_a-zA-Z0-9]+")
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
ARCHIVE = "multiscreen_jax.tar.gz"
INSTALL = (
    f"rm -rf ~/multiscreen_jax && mkdir ~/multiscreen_jax"
    f" && tar -xzf ~/{ARCHIVE} -C ~/multiscreen_jax"
    " && curl -LsSf https://astral.sh/uv/install.sh | sh"
    " && ~/.local/bin/uv venv --allow-existing --python 3.12 ~/venv"
    " && cd ~/multiscreen_jax"
    " && ~/.local/bin/uv pip install --python ~/venv/bin/python -e '.[tpu,data]'"
)
INSTALL_GCSFUSE = (
    "command -v gcsfuse || {"
    " curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg"
    " | sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null"
    ' && echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc]'
    ' https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main"'
    " | sudo tee /etc/apt/sources.list.d/gcsfuse.list"
    " && sudo apt-get update && sudo apt-get install -y gcsfuse; }"
)
RUNNING = 'kill -0 "$(cat ~/train.pid)" 2> /dev/null'


def create(
    place: Here,
    accelerator: str,
    runtime_version: str | None = None,
    queued: bool = False,
    spot: bool = False,
    reserved: bool = False,
) -> list[Command]:
    """Asks for a slice.

    Args:
      place: the slice's name, zone and project.
      accelerator: its type, such as v5p-256 (v4 and v5p count cores, two a chip).
      runtime_version: of the hosts' image (default: the one for this type).
      queued: wait in the queue of queued resources instead of failing where none is free.
      spot: cheaper, and may be taken away at any time.
      reserved: from the project's reservation.
    """
    check("--accelerator", accelerator, ACCELERATOR, "v4-N, v5litepod-N, v5p-N or v6e-N")
    if spot and reserved:
        raise ValueError("--spot and --reserved are both given; allowed: one of them")
    version = runtime_version or RUNTIMES[accelerator.partition("-")[0]]
    what = [f"--accelerator-type={accelerator}"]
    if queued:
        what += [f"--node-id={place.name}", f"--runtime-version={version}"]
    else:
        what += [f"--version={version}"]
    kind = [flag for flag, given in (("--spot", spot), ("--reserved", reserved)) if given]
    return [[*_gcloud(queued), "create", place.name, *place.flags(), *what, *kind]]


def status(place: Here, queued: bool = False) -> list[Command]:
    """Says what state the slice, or the request for one (--queued), is in."""
    wanted = "--format=value(state.state)" if queued else "--format=value(state,health)"
    return [[*_gcloud(queued), "describe", place.name, *place.flags(), wanted]]


def install(place: Here, revision: str = "HEAD") -> list[Command]:
    """Puts a commit of this checkout on every host, and its packages.

    Args:
      place: the slice.
      revision: a commit, branch or tag of the current folder's repository.
    """
    local = f"/tmp/{ARCHIVE}"
    copy = [*_gcloud(), "scp", local, f"{place.name}:", *place.flags(), "--worker=all"]
    archive = ["git", "archive", "--format=tar.gz", f"--output={local}", revision, "--"]
    return [archive, copy, _ssh(place, INSTALL)]


def mount(place: Here, bucket: str | None = None, share: str | None = None) -> list[Command]:
    """Mounts data and runs on every host: a bucket at /mnt/data, to read; NFS at /mnt/runs.

    Args:
      place: the slice.
      bucket: Cloud Storage bucket, without gs://.
      share: file share that holds the runs, such as 10.0.0.2:/runs (Filestore).
    """
    if bucket is None and share is None:
        raise ValueError("nothing to mount is given; allowed: --bucket, --share, or both")
    scripts = []
    if bucket is not None:
        check("--bucket", bucket, BUCKET, "a bucket's name, without gs://")
        scripts.append(
            # Once mounted, the folder cannot be given to anyone: a second `mount` must not try.
            f"{{ {INSTALL_GCSFUSE}; }} && {{ mountpoint -q {DATA} ||"
            f" {{ sudo mkdir -p {DATA} && sudo chown $USER {DATA}"
            f" && gcsfuse --implicit-dirs -o ro {bucket} {DATA}; }}; }}"
        )
    if share is not None:
        check("--share", share, SHARE, "an address and a share such as 10.0.0.2:/runs")
        scripts.append(
            f"sudo apt-get install -y nfs-common && {{ mountpoint -q {RUNS} ||"
            f" {{ sudo mkdir -p {RUNS} && sudo mount -o rw,hard {share} {RUNS}; }}; }}"
            f" && sudo chmod a+rwx {RUNS}"
        )
    return [_ssh(place, script) for script in scripts]


def run(place: Here, training: tuple[str, ...]) -> list[Command]:
    """Starts the training command after -- on every host, or continues it; does not wait.

    Its output is appended to ~/train.log of each host.
    """
    check_training(training, mounted=True)
    command = shlex.join(["-m", "experiments.train", *training])
    script = (
        f"if {RUNNING}; then echo 'a run is going on already' >&2; exit 1; fi;"
        f" cd ~/multiscreen_jax && (nohup ~/venv/bin/python {command}"
        " >> ~/train.log 2>&1 < /dev/null & echo $! > ~/train.pid)"
    )
    return [_ssh(place, script)]


def logs(place: Here, worker: int = 0) -> list[Command]:
    """Follows the output of one host; host 0 reports the run."""
    return [_ssh(place, "tail -n 100 -F ~/train.log", str(worker))]


def stop(place: Here) -> list[Command]:
    """Asks the run to save and end at the next step."""
    return [_ssh(place, f'{RUNNING} && kill -TERM "$(cat ~/train.pid)"')]


def delete(place: Here, queued: bool = False) -> list[Command]:
    """Gives the slice back, also one that was preempted; --queued as it was created."""
    force = ["--force"] if queued else []
    return [[*_gcloud(queued), "delete", place.name, *place.flags(), *force, "--quiet"]]


def _gcloud(queued: bool = False) -> Command:
    return ["gcloud", "compute", "tpus", "queued-resources" if queued else "tpu-vm"]


def _ssh(place: Place, script: str, worker: str = "all") -> Command:
    words = [*_gcloud(), "ssh", place.name, *place.flags()]
    return [*words, f"--worker={worker}", f"--command={script}"]
