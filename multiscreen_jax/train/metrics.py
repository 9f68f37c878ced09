"""Where the numbers of a run go: metrics.jsonl, TensorBoard, Weights & Biases."""

import importlib
import importlib.util
import json
import math
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from multiscreen_jax.json_files import read_object

FILE = "metrics.jsonl"


class JsonLines:
    """OUTPUT/metrics.jsonl: one line per logged step, flushed as it is written."""

    def __init__(self, output_dir: Path, step: int) -> None:
        path = Path(output_dir) / FILE
        keep_until(path, step)
        self._stream = path.open("a")

    def write(self, record: dict[str, Any]) -> None:
        self._stream.write(json.dumps(_plain(record)) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


class TensorBoard:
    """OUTPUT/tensorboard; a list of one value per layer becomes one curve per layer."""

    def __init__(self, output_dir: Path, step: int) -> None:
        tensorboard = importlib.import_module("tensorboardX")
        # The curves of steps that are done again are dropped from the restored step on.
        self._writer = tensorboard.SummaryWriter(
            str(Path(output_dir) / "tensorboard"), purge_step=step + 1
        )

    def write(self, record: dict[str, Any]) -> None:
        for name, value in _numbers(record):
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


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

    def close(self) -> None:
        self._run.finish()


class Sinks:
    """All places a record is written to."""

    def __init__(self, sinks: list[Any]) -> None:
        self._sinks = sinks

    def write(self, record: dict[str, Any]) -> None:
        for sink in self._sinks:
            sink.write(record)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


def open_sinks(config: Any, config_dict: dict[str, Any], step: int, say: Callable) -> Sinks:
    """The sinks of a run that continues after `step` (0: from the beginning).

    Of several processes only the first writes.
    """
    if jax.process_index() > 0:
        return Sinks([])
    folder = Path(config.output_dir)
    sinks: list[Any] = [JsonLines(folder, step)]
    if config.tensorboard:
        try:
            sinks.append(TensorBoard(folder, step))
        except ModuleNotFoundError:
            say("tensorboardX is not installed: no TensorBoard files (pip install tensorboardX)")
    if config.wandb_project is not None:
        sinks.append(WeightsAndBiases(config.wandb_project, folder, config_dict))
    return Sinks(sinks)


def check(config: Any) -> None:
    """ValueError when the settings ask for a package that is not installed."""
    if config.wandb_project is not None and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"train.wandb-project is {config.wandb_project!r} and the package wandb is not "
            "installed; install it or leave the option out"
        )


def keep_until(path: Path, step: int) -> None:
    """Drops the lines of a metrics file after `step`, and those that are no record."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = read_object(line, keys={"step": int})
            if line.endswith(b"\n") and record["step"] <= step:
                kept.append(line)
        except ValueError:  # cut short, or not ours
            continue
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        stream.writelines(kept)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


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
