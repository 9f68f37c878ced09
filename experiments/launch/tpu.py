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
    WORD,
    Command,
    Place,
    check,
    check_integer,
    check_share,
    check_training,
    private_folder,
)

Here = Annotated[Place, tyro.conf.arg(name="")]
ACCELERATOR = re.compile(r"(v4|v5litepod|v5p|v6e)-[1-9][0-9]*")
REVISION = re.compile(r"\w[-\w./@^~{}#+]*")
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
ARCHIVE = "multiscreen_jax.tar.gz"
# What installs the packages is itself taken by version and digest.
UV = "uv==0.13.9 --hash=sha256:d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19"
INSTALL = (
    f"rm -rf ~/multiscreen_jax && mkdir ~/multiscreen_jax"
    f" && tar -xzf ~/{ARCHIVE} -C ~/multiscreen_jax"
    f" && echo '{UV}' > ~/uv.txt"
    " && python3 -m pip install --user --no-deps --only-binary :all: --require-hashes -r ~/uv.txt"
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
# A share's root is root's until it is first mounted. Whoever does that has it, with their group.
OWN_RUNS = (
    f'{{ [ "$(stat -c %u {RUNS})" != 0 ] ||'
    f' {{ sudo chown "$USER": {RUNS} && sudo chmod u=rwx,g=rwx,o= {RUNS}; }}; }}'
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
    if runtime_version is None:
        runtime_version = RUNTIMES[accelerator.partition("-")[0]]
    check("--runtime-version", runtime_version, WORD, "letters, digits and - _ .")
    what = [f"--accelerator-type={accelerator}"]
    if queued:
        what += [f"--node-id={place.name}", f"--runtime-version={runtime_version}"]
    else:
        what += [f"--version={runtime_version}"]
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
    check("--revision", revision, REVISION, "a commit, branch or tag")
    local = f"{private_folder()}/{ARCHIVE}"
    copy = [*_gcloud(), "scp", local, f"{place.name}:", *place.flags(), "--worker=all"]
    archive = ["git", "archive", "--format=tar.gz", f"--output={local}", revision, "--"]
    return [archive, copy, _ssh(place, INSTALL)]


def mount(place: Here, bucket: str | None = None, share: str | None = None) -> list[Command]:
    """Mounts data and runs on every host: a bucket at /mnt/data, to read; NFS at /mnt/runs.

    A share that is root's becomes yours and your group's; nobody else can enter it.

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
        check_share("--share", share)
        scripts.append(
            f"sudo apt-get install -y nfs-common && {{ mountpoint -q {RUNS} ||"
            f" {{ sudo mkdir -p {RUNS} && sudo mount -o rw,hard {share} {RUNS}; }}; }}"
            f" && {OWN_RUNS}"
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
    check_integer("--worker", worker, 0)
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
