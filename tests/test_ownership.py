"""One owner per folder: the second is told who, touches nothing, and a dead holder never blocks."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from multiscreen_jax.ownership import FolderInUse, owned

ROOT = Path(__file__).parents[1]
HOLD = """
import sys, time
from pathlib import Path
from multiscreen_jax.ownership import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(folder):
    """A process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def times(folder):
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_the_second_is_told_who_holds_the_folder_and_changes_nothing(tmp_path):
    with hold(tmp_path) as holder:
        before = times(tmp_path)
        with pytest.raises(FolderInUse) as refused, owned(tmp_path):
            pass
        assert times(tmp_path) == before
        told = str(refused.value)
        assert f"pid {holder.pid} on {os.uname().nodename} since 20" in told
        assert "import sys, time" in told  # its command
        assert "\n" not in told
        holder.send_signal(signal.SIGKILL)
    with owned(tmp_path):  # the kernel gave back what a killed process held
        pass


def test_a_folder_is_held_once_in_a_process_and_given_back(tmp_path):
    with owned(tmp_path / "new" / "folder"):
        with pytest.raises(FolderInUse), owned(tmp_path / "new" / "folder"):
            pass
        with owned(tmp_path / "other"):
            pass
        # The refused one did not give back what was not its own.
        with pytest.raises(FolderInUse), owned(tmp_path / "new" / "folder"):
            pass
    with owned(tmp_path / "new" / "folder"):
        pass


def test_programs_and_forks_of_the_holder_hold_nothing(tmp_path):
    reader, writer = os.pipe()
    with owned(tmp_path):
        program = subprocess.Popen(["sleep", "600"], close_fds=False)
        if (fork := os.fork()) == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent is done
            os._exit(0)
        with pytest.raises(FolderInUse), owned(tmp_path):
            pass
    with owned(tmp_path):
        pass
    os.close(writer)
    os.waitpid(fork, 0)
    os.close(reader)
    program.kill()
    program.wait()


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", '{"pid": 1}', "[" * 100_000, "\xff"),
        '["pid", "host", "since", "command"]',
        '{"pid": [7], "host": "h", "since": "1999", "command": "c"}',
        '{"pid": 7, "host": {}, "since": "1999", "command": "c"}',
        '{"pid": 7, "host": "h", "since": null, "command": "c"}',
        '{"pid": 7, "host": "h", "since": "1999", "command": 3}',
    ],
)
def test_a_lock_file_of_a_dead_process_or_with_other_content_never_blocks(text, tmp_path, capsys):
    (tmp_path / ".lock").write_text(text, encoding="latin-1")
    with owned(tmp_path) as owner:
        assert not capsys.readouterr().err
        owner.check()
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        (tmp_path / ".lock").write_text(text, encoding="latin-1")
        with (
            pytest.raises(FolderInUse, match="is being written by another process"),
            owned(tmp_path),
        ):
            pass


def test_another_host_that_did_not_give_the_folder_back_is_named(tmp_path, capsys):
    holder = {"pid": 7, "host": "elsewhere", "since": "1999", "command": "train\nall"}
    (tmp_path / ".lock").write_text(json.dumps(holder))
    with owned(tmp_path):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert "pid 7 on elsewhere since 1999: train all" in line
    with owned(tmp_path):  # given back, so nothing is said
        pass
    assert not capsys.readouterr().err


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_and_used(code, tmp_path, monkeypatch, capsys):
    def refuse(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with owned(tmp_path):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the file system of {tmp_path} has no locks" in line


def test_a_folder_that_was_removed_or_replaced_is_no_longer_owned(tmp_path):
    folder, moved = tmp_path / "run", tmp_path / "moved"
    with owned(folder) as owner:
        owner.check()
        folder.rename(moved)
        with pytest.raises(OSError, match=r"run was removed or replaced"):
            owner.check()
        with owned(folder), pytest.raises(OSError, match=r"run was removed or replaced"):
            owner.check()
