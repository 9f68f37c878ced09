"""Where the numbers of a run go: metrics.jsonl, TensorBoard, Weights & Biases."""

import functools
import importlib
import importlib.util
import json
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from multiscreen_jax.json_files import read_object
from multiscreen_jax.train.errors import NotWritten, short_reason, writing
from multiscreen_jax.train.side_sink import SideSink

FILE = "metrics.jsonl"


class JsonLines:
    """OUTPUT/metrics.jsonl, the run's record: one line per logged step, written at once.

    A record that cannot be written does not raise: `error` says why, and `unwritten` keeps this
    line and those after it for the checkpoint that the run then ends with.
    """

    def __init__(self, output_dir: Path, step: int, unwritten: Sequence[str] = ()) -> None:
        self._path = Path(output_dir) / FILE
        self.error: NotWritten | None = None
        self.unwritten: list[str] = []
        with writing(self._path):
            keep_until(self._path, step, unwritten)
            self._stream = self._path.open("ab", buffering=0)

    def write(self, record: dict[str, Any]) -> None:
        line = json.dumps(_plain(record)) + "\n"
        try:
            if self.error is None:
                with writing(self._path):
                    self._path.stat()  # not there: removed, and the open file reaches nobody
                    _write_all(self._stream, line.encode())
        except NotWritten as error:
            self.error = error
        if self.error is not None:
            self.unwritten.append(line)

    def close(self) -> None:
        with writing(self._path):
            self._stream.close()


class TensorBoard:
    """OUTPUT/tensorboard; a list of one value per layer becomes one curve per layer."""

    def __init__(self, output_dir: Path, step: int) -> None:
        tensorboard = importlib.import_module("tensorboardX")
        self._summary = importlib.import_module("tensorboardX.summary")
        self._protocol = importlib.import_module("tensorboardX.proto.event_pb2")
        folder = Path(output_dir) / "tensorboard"
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        # Its SummaryWriter would write in a thread that nobody hears of when it has died.
        self._writer = tensorboard.RecordWriter(str(folder / name))
        self._add(file_version="brain.Event:2")
        # The curves of steps that are done again are dropped from the restored step on.
        start = self._protocol.SessionLog(status=self._protocol.SessionLog.START)
        self._add(step=step + 1, session_log=start)

    def write(self, record: dict[str, Any]) -> None:
        for name, value in _numbers(record):
            summary = self._summary.scalar(name, value)
            self._add(step=record["step"], summary=summary)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add(self, **fields: Any) -> None:
        event = self._protocol.Event(wall_time=time.time(), **fields)
        self._writer.write(event.SerializeToString())


class WeightsAndBiases:
    """One run of a project, called as the output folder; continued runs of the folder continue it.

    Folders of one name may lie in different places, so the run's id is drawn, and kept in the
    folder.
    """

    def __init__(self, project: str, output_dir: Path, config: dict[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        file = output_dir / "wandb_id.txt"
        if not file.exists():
            file.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project=project,
            name=output_dir.absolute().name,
            id=file.read_text(),
            dir=str(output_dir),
            config=config,
            resume="allow",
        )

    def write(self, record: dict[str, Any]) -> None:
        self._run.log(dict(_numbers(record)), step=record["step"])

    def flush(self) -> None:
        """It sends by itself."""

    def close(self) -> None:
        self._run.finish()


class Sinks:
    """All places a record is written to: the run's own, and those that training never waits for."""

    def __init__(self, record: JsonLines | None, others: Sequence[SideSink] = ()) -> None:
        self._record, self._others = record, others

    def write(self, record: dict[str, Any]) -> None:
        if self._record is not None:
            self._record.write(record)
        for sink in self._others:
            sink.write(record)

    @property
    def error(self) -> NotWritten | None:
        """Why the run's record is incomplete, if it is."""
        return self._record.error if self._record is not None else None

    @property
    def unwritten(self) -> list[str]:
        """The lines that it lacks."""
        return self._record.unwritten if self._record is not None else []

    def close(self) -> None:
        for sink in self._others:
            sink.close()
        if self._record is not None:
            self._record.close()


def open_sinks(
    config: Any, config_dict: dict[str, Any], step: int, unwritten: Sequence[str], say: Callable
) -> Sinks:
    """The sinks of a run that continues after `step` (0: from the beginning).

    Of several processes only the first writes. `unwritten` are lines that the record still lacks.
    """
    if jax.process_index() > 0:
        return Sinks(None)
    folder = Path(config.output_dir)
    record = JsonLines(folder, step, unwritten)
    others = []
    if config.tensorboard:
        if importlib.util.find_spec("tensorboardX") is None:
            say("tensorboardX is not installed: no TensorBoard files (pip install tensorboardX)")
        else:
            others.append(SideSink("TensorBoard", lambda: TensorBoard(folder, step), say))
    if (project := config.wandb_project) is not None:
        make = functools.partial(WeightsAndBiases, project, folder, config_dict)
        others.append(SideSink("Weights & Biases", make, say))
    return Sinks(record, others)


def check(config: Any) -> None:
    """ValueError when the settings ask for a package that is not installed, or lacks its key."""
    if config.wandb_project is None:
        return
    given = f"train.wandb-project is {config.wandb_project!r}"
    if importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"{given} and the package wandb is not installed; install it or leave the option out"
        )
    wandb = importlib.import_module("wandb")
    # Offline needs no key. In a terminal this may ask for one, which is better now than later.
    if wandb.setup().settings.mode not in ("online", "shared"):
        return
    try:
        known = wandb.login()
    except wandb.Error as error:
        known, why = False, f" ({short_reason(error)})"
    else:
        why = ""
    if not known:
        raise ValueError(
            f"{given} and Weights & Biases has no key{why}; allowed: `wandb login` or "
            "WANDB_API_KEY before, WANDB_MODE=offline, or without the option"
        )


def keep_until(path: Path, step: int, more: Sequence[str] = ()) -> None:
    """Drops the lines of a metrics file after `step`, and those that are no record; adds `more`.

    `more` are lines of a step up to `step` that could not be written in their time.
    """
    if not path.exists() and not more:
        return
    kept, last = [], 0
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for line in lines:
        number = _step_of(line)
        if number is not None and number <= step:
            kept.append(line)
            last = number
    for line in (text.encode(errors="surrogatepass") for text in more):
        number = _step_of(line)
        if number is not None and number > last:
            kept.append(line)
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb", buffering=0) as stream:
            _write_all(stream, b"".join(kept))
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # it would keep a full disk full
        raise


def _step_of(line: bytes) -> int | None:
    """The step of a line of metrics.jsonl; None of one that was cut short, or is not ours."""
    try:
        step = read_object(line, keys={"step": int})["step"]
    except ValueError:
        return None
    return step if line.endswith(b"\n") else None


def _write_all(stream: Any, content: bytes) -> None:
    """A nearly full disk takes a part of what it is given, and says so by a number alone."""
    while content:
        content = content[stream.write(content) :]


def float_hex(value: Any) -> str:
    """The bits of a floating-point scalar, readable: float.hex of its exact value."""
    return float(value).hex()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN; "nan" and "inf" are readable and float() takes them
    return value


def _numbers(record: dict[str, Any]) -> list[tuple[str, float]]:
    found = []
    for name, value in record.items():
        if name == "step" or isinstance(value, str):
            continue
        array = np.asarray(value, np.float64)
        if array.ndim == 0:
            found.append((name, float(array)))
        else:
            found += [(f"{name}/{i}", float(entry)) for i, entry in enumerate(array.ravel())]
    return found
