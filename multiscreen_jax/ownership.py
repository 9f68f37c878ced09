"""One owner per folder: who writes into it holds the lock on FOLDER/.lock; a second is refused.

The kernel holds the lock, so it ends with its holder however that ends, and reaches as far as the
file system's locks do: all hosts of NFS 4, Lustre with -o flock, ... The file says who the holder
is.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from multiscreen_jax.cleanup import afterwards
from multiscreen_jax.json_files import read_object

NAME = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_TRIES = 20
_LONGEST_COMMAND = 200  # characters of it that a message repeats
_HOLDER = {"pid": int, "host": str, "since": str, "command": str}
_held: set[int] = set()


class FolderInUse(OSError):
    """Another process writes into the folder; the message says which. Trying again is no help."""

    exit_code = 2


@dataclass(frozen=True)
class Owner:
    """The right to write into a folder."""

    folder: Path
    text: str  # what our lock's file says

    def check(self) -> None:
        """OSError when the folder is not the one that was taken: it was removed, or replaced."""
        if not self._is_there():
            raise OSError(f"{self.folder} was removed or replaced while this process wrote in it")

    def leave(self) -> None:
        """Removes the lock's file, if it is still ours."""
        with contextlib.suppress(OSError):
            if self._is_there():
                (self.folder / NAME).unlink()

    def _is_there(self) -> bool:
        try:
            return (self.folder / NAME).read_text(errors="replace") == self.text
        except FileNotFoundError:
            return False


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[Owner]:
    """Makes the folder if it is missing, and holds it.

    Raises:
      FolderInUse: another process holds it. Nothing in the folder was touched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(folder)
    try:
        owner = Owner(folder, _sign(descriptor))
        with afterwards(lambda: owner.leave() if descriptor in _held else None):
            yield owner
    finally:
        _close(descriptor)


def _locked(folder: Path) -> int:
    """The lock's file, open and locked."""
    for _ in range(_TRIES):
        # Not inherited by programs that are started (Python's default), nor kept by forks.
        descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        _held.add(descriptor)
        try:
            _lock(descriptor, folder)
            if _is_at(descriptor, folder / NAME):
                return descriptor
        except BaseException:
            _close(descriptor)
            raise
        _close(descriptor)  # its holder has just left, and removed it
    raise FolderInUse(f"{folder} is taken and left by other processes all the time")


def _close(descriptor: int) -> None:
    if descriptor in _held:  # a fork has closed its own already
        _held.remove(descriptor)
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int, folder: Path) -> None:
    before, known = _read(descriptor), True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FolderInUse(
            f"{folder} is being written by another process{_who(_wait_for_text(descriptor))}; "
            "allowed: another folder, or this one when that process has ended"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        known = False
        _warn(f"the file system of {folder} has no locks: a second process in it is not noticed")
    if before and not (known and json.loads(before)["host"] == socket.gethostname()):
        # Killed, or at work where our locks do not reach.
        _warn(f"{folder} was not given back by its last holder{_who(before)}")


def _sign(descriptor: int) -> str:
    """Writes into the file who we are; returns what it says then, less where a disk is full."""
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(sys.orig_argv),
        "id": secrets.token_hex(4),  # tells one lock of this process from the next
    }
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        os.fsync(descriptor)
    return os.pread(descriptor, 1 << 20, 0).decode()


def _read(descriptor: int) -> str:
    """The file's text about its holder; '' where it says nothing of use."""
    text = os.pread(descriptor, 1 << 20, 0).decode(errors="replace")
    try:
        read_object(text, keys=_HOLDER)
        return text
    except ValueError:
        return ""


def _wait_for_text(descriptor: int) -> str:
    """The same of a holder that may have the lock and not have written yet."""
    for _ in range(20):
        if text := _read(descriptor):
            return text
        time.sleep(0.05)
    return ""


def _who(text: str) -> str:
    if not text:
        return ""
    holder = json.loads(text)
    command = " ".join(holder["command"].split())
    if len(command) > _LONGEST_COMMAND:
        command = f"{command[:_LONGEST_COMMAND]} ..."
    return f" (pid {holder['pid']} on {holder['host']} since {holder['since']}: {command})"


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


def _forget_in_fork() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_fork)
