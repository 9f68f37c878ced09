"""Errors that come from files, pipes and terminals, as a person sees them."""

import errno
import io
import os
import sys

import pytest

from multiscreen_jax.ownership import FolderInUse
from multiscreen_jax.train import one_line_errors


def ended(error, capsys):
    """Exit code and line of a command that this error ends."""
    with pytest.raises(SystemExit) as stop, one_line_errors():
        raise_elsewhere(error)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return stop.value.code, line


def raise_elsewhere(error):
    """Raises as a module of another library does."""
    exec("raise error", {"__name__": "another.library", "error": error})


@pytest.mark.parametrize("number", ["EACCES", "EPERM", "EISDIR", "ENOTDIR", "EEXIST", "EROFS"])
def test_files_that_are_refused_are_named(number, capsys):
    number = getattr(errno, number)
    code, line = ended(OSError(number, os.strerror(number), "some/file.bin"), capsys)
    assert code == 2
    assert os.strerror(number) in line
    assert "some/file.bin" in line
    with pytest.raises(OSError, match="Errno"), one_line_errors():
        raise_elsewhere(OSError(number, os.strerror(number)))  # of what?


def test_real_ones(tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    for act in (tmp_path.read_bytes, tmp_path.mkdir, (file / "x").touch):
        with pytest.raises(SystemExit, match="2"), one_line_errors():
            act()
        assert str(tmp_path) in capsys.readouterr().err


def test_others_keep_their_traceback_and_code(capsys):
    with pytest.raises(OSError, match="Input/output"), one_line_errors():
        raise_elsewhere(OSError(errno.EIO, os.strerror(errno.EIO), "x"))
    assert ended(OSError(errno.ENOSPC, "No space left on device"), capsys)[0] == 4
    assert ended(FolderInUse("x is being written"), capsys)[0] == 2


@pytest.fixture
def unread():
    """A pipe whose reader has gone after a while; what a command writes is held back."""
    read, write = os.pipe()
    out = io.TextIOWrapper(io.BufferedWriter(io.FileIO(write, "w")), encoding="utf-8")
    print("text", file=out, flush=True)
    os.close(read)
    yield out
    out.close()  # goes nowhere


@pytest.mark.parametrize("flush", [True, False])
def test_a_pipe_whose_reader_has_gone_ends_quietly(unread, monkeypatch, capsys, flush):
    monkeypatch.setattr(sys, "stdout", unread)
    with pytest.raises(SystemExit) as stop, one_line_errors():
        print("text", flush=flush)
    assert stop.value.code == 141
    assert capsys.readouterr().err == ""


def test_a_pipe_whose_reader_has_gone_and_an_error(unread, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", unread)
    unread.write("text")
    with pytest.raises(SystemExit) as stop, one_line_errors():
        raise FolderInUse("x is being written")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: x is being written\n"


def test_streams_that_are_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with one_line_errors():
        print("text")


def test_help_to_a_reader_that_has_gone(unread, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", unread)
    unread.write("help")
    with pytest.raises(SystemExit, match="0"), one_line_errors():
        sys.exit(0)
    unread.flush()  # as when Python ends: it goes nowhere


def test_characters_that_a_stream_does_not_have(monkeypatch):
    held = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding="ascii"))
    with one_line_errors():
        print("naïve 漢")
    assert held.getvalue() == b"na\\xefve \\u6f22\n"
