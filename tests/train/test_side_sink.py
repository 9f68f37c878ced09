"""Training never waits for TensorBoard or W&B: one that fails or hangs is named and left out."""

import struct
import sys
import threading
from types import SimpleNamespace

import pytest

from multiscreen_jax.train import TrainConfig, metrics, side_sink, train
from multiscreen_jax.train.side_sink import SideSink
from tests.train import small

RECORDS = [{"step": step, "loss": 1.0, "health/window": [1.0, 2.0]} for step in range(1, 31)]


class Sink:
    """Keeps what it is given; raises or waits for ever in the method called `where`."""

    def __init__(self, how="", where=""):
        self._how, self._where = how, where
        self.written, self.reached, self.release = [], threading.Event(), threading.Event()
        self._at("make")

    def write(self, record):
        self._at("write")
        self.written.append(record["step"])

    def flush(self):
        self._at("flush")

    def close(self):
        self._at("close")

    def _at(self, where):
        if where == self._where and self._how == "raise":
            raise OSError(28, "No space left on device")
        if where == self._where and self._how == "exit":
            sys.exit("no network")
        if where == self._where and self._how == "hang":
            self.reached.set()
            self.release.wait()


def test_a_sink_gets_every_record_in_order_and_nothing_is_said():
    said, sink = [], Sink()
    behind = SideSink("It", lambda: sink, said.append)
    for record in RECORDS:
        behind.write(record)
    behind.close()
    assert sink.written == [record["step"] for record in RECORDS]
    assert not said


@pytest.mark.parametrize("where", ["make", "write", "flush", "close"])
@pytest.mark.parametrize(("how", "why"), [("raise", "[Errno 28] No space"), ("exit", "no network")])
def test_a_sink_that_fails_is_named_once(how, why, where):
    said = []
    behind = SideSink("It", lambda: Sink(how, where), said.append)
    for record in RECORDS:
        behind.write(record)
    behind.close()
    for record in RECORDS:
        behind.write(record)
    (line,) = said
    assert line.startswith(f"It is left out from here on: {why}")


@pytest.mark.parametrize(
    ("limit", "value", "why"),
    [
        ("LONGEST_CALL", 0.0, "no answer for 0 s"),
        ("MOST_WAITING", 5, "5 records wait for it"),
        ("LAST_WAIT", 0.0, "not done 0 s after the end"),
    ],
)
def test_a_sink_that_hangs_is_named_once_and_nobody_waits(limit, value, why, monkeypatch):
    monkeypatch.setattr(side_sink, limit, value)
    said, sink = [], Sink("hang", "write")
    behind = SideSink("It", lambda: sink, said.append)
    behind.write(RECORDS[0])
    assert sink.reached.wait(60)
    if limit != "LAST_WAIT":
        for record in RECORDS[1:]:
            behind.write(record)
    behind.close()
    sink.release.set()
    assert said == [f"It is left out from here on: {why}"]


def test_a_run_whose_wandb_hangs_ends_with_all_its_steps(text, whole_run, tmp_path, monkeypatch):
    released = threading.Event()
    stand_in = SimpleNamespace(
        init=lambda **settings: SimpleNamespace(
            log=lambda values, step: released.wait(), finish=released.wait
        )
    )
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.setattr(metrics, "check", lambda config: None)
    monkeypatch.setattr(side_sink, "LAST_WAIT", 0.1)
    train(small.config(text, tmp_path, "--train.wandb-project", "project"))
    released.set()
    assert small.loss_bits(tmp_path) == small.loss_bits(whole_run[0])


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_wandb_without_a_key_is_refused_before_anything_else(mode, monkeypatch):
    class Error(Exception):
        pass

    def login():
        raise Error("no key configured")

    settings = SimpleNamespace(settings=SimpleNamespace(mode=mode))
    stand_in = SimpleNamespace(
        setup=lambda: settings, login=login, Error=Error, __spec__=SimpleNamespace()
    )
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    config = TrainConfig(wandb_project="x")
    if mode == "offline":
        metrics.check(config)
        return
    told = r"wandb-project is 'x' .* no key .*; allowed: `wandb login"
    with pytest.raises(ValueError, match=told):
        metrics.check(config)


def test_tensorboard_files_hold_the_numbers_and_where_they_begin(tmp_path):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    sink = metrics.TensorBoard(tmp_path, 7)
    sink.write({"step": 8, "loss": 2.5, "learning_rate": 0.5, "health/window": [1.0, 2.0]})
    sink.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, events = file.read_bytes(), []
    while content:
        (length,) = struct.unpack_from("<Q", content)
        events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    version, start, *scalars = events
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (8, event_pb2.SessionLog.START)
    values = {e.summary.value[0].tag: e.summary.value[0].simple_value for e in scalars}
    expected = {"loss": 2.5, "learning_rate": 0.5, "health/window/0": 1.0, "health/window/1": 2.0}
    assert values == expected
    assert {event.step for event in scalars} == {8}
