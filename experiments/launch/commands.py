"""Commands of the launchers: lists of words, checked before anything is started.

No value that is given becomes an option of a called program, or more than one word of a shell:
`check` and `check_training` see every one.
"""

from __future__ import annotations

import atexit
import ipaddress
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from multiscreen_jax.train.command_line import parse

Command = list[str]
NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
ZONE = re.compile(r"[a-z]+-[a-z]+[0-9]+-[a-z]")
BUCKET = re.compile(r"[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]")
WORD = re.compile(r"[a-zA-Z0-9][-_.a-zA-Z0-9]*")
PATH = re.compile(r"[-_./~a-zA-Z0-9]+")
_LABEL = re.compile(r"[a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?")
# From the signal that ends a run to its end: time for the step under way and a checkpoint.
GRACE_SECONDS = 900
RUNS, DATA = "/mnt/runs", "/mnt/data"  # where `mount` puts what all hosts share


@dataclass(frozen=True)
class Place:
    """Where on Google Cloud.

    Attributes:
      name: of the TPU slice, or of the GKE cluster.
      zone: such as us-east5-a.
      project: Google Cloud project (default: the one gcloud is set to).
    """

    name: str
    zone: str
    project: str | None = None

    def __post_init__(self):
        check("--name", self.name, NAME, "lowercase letters, digits and hyphens, a letter first")
        check("--zone", self.zone, ZONE, "a zone such as us-east5-a")
        if self.project is not None:
            check("--project", self.project, NAME, "a project's id")

    def flags(self) -> list[str]:
        project = [] if self.project is None else [f"--project={self.project}"]
        return [f"--zone={self.zone}", *project]


def check(flag: str, given: str, pattern: re.Pattern[str], allowed: str) -> None:
    """One-line ValueError unless the whole of `given` matches; what begins with - never does."""
    if given.startswith("-") or not pattern.fullmatch(given):
        raise ValueError(f"{flag} is {given!r}; allowed: {allowed}")


def check_integer(flag: str, given: int, lowest: int) -> None:
    """One-line ValueError below `lowest`."""
    if given < lowest:
        raise ValueError(f"{flag} is {given}; allowed: an integer >= {lowest}")


def check_share(flag: str, given: str) -> None:
    """One-line ValueError unless it is HOST:/PATH, the host an address or a name."""
    host, colon, path = given.partition(":/")
    if given.startswith("["):  # IPv6
        host, colon, path = given.partition("]:/")
        host = host.removeprefix("[")
    if not colon or not _is_host(host, given.startswith("[")) or not PATH.fullmatch(path):
        raise ValueError(f"{flag} is {given!r}; allowed: HOST:/PATH, such as 10.0.0.2:/runs")


def _is_host(host: str, bracketed: bool) -> bool:
    """Whether it is an address that a server may have, or a host's name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        labels = host.split(".")
        named = len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
        return named and not labels[-1].isdecimal() and not bracketed
    is_any = address.is_unspecified or address.is_multicast
    return not is_any and "%" not in host and bracketed == (address.version == 6)


def check_grace(seconds: int) -> None:
    """One-line ValueError unless a checkpoint may fit in so many seconds and SLURM takes them."""
    if not 60 <= seconds <= 65535:
        raise ValueError(f"--grace-seconds is {seconds}; allowed: 60 to 65535")


def check_training(arguments: Sequence[str], mounted: bool) -> None:
    """Reads a training command line as every host will, where a mistake costs nothing yet.

    ValueError (SystemExit for options that do not exist) for one that cannot be trained, or
    whose output folder is none that all hosts have: with `mounted` it must be an absolute path.
    """
    if not arguments:
        raise ValueError("no experiment is given; allowed: -- NAME [--section.field value ...]")
    for word in arguments:
        if not word.isprintable():  # another line, in the YAML or the shell that it comes to
            raise ValueError(
                f"{word!r} is given after --; allowed: text without control characters"
            )
    output = parse("experiments.configs", "python -m experiments.train", arguments).train.output_dir
    if mounted and not output.startswith("/"):
        place = f"on a mount that all hosts share, such as {RUNS}/NAME"
        raise ValueError(f"train.output-dir is {output!r}; allowed: a path {place}")


def private_folder() -> str:
    """A new folder that this user alone can enter; it goes when this process ends."""
    folder = tempfile.mkdtemp(prefix="multiscreen_jax-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def run_all(commands: Sequence[Command], dry_run: bool) -> None:
    """Prints each command as a shell would take it and, unless it is a dry run, runs it.

    Raises:
      OSError: a program is missing, or a command failed; those after it are not run.
    """
    for command in commands:
        print(shlex.join(command), flush=True)
        if dry_run:
            continue
        if shutil.which(command[0]) is None:
            raise OSError(f"{command[0]} is not installed here; README.md of this folder says more")
        code = subprocess.run(command, check=False).returncode
        if code:
            raise OSError(f"{command[0]} ended with code {code}")
