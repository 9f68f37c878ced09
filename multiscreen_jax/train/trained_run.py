"""A trained model and what reads its text, by the name of a run's folder or of a shipped model."""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from multiscreen_jax import pretrained
from multiscreen_jax.data import DataConfig, Tokenizer
from multiscreen_jax.data.config import near_matches
from multiscreen_jax.paths import expanded_path
from multiscreen_jax.train import checks, own_code, reading, run_tokenizer
from multiscreen_jax.train.places import located

ALLOWED = "the output folder of a training run, one of its checkpoints, or a shipped model"


@dataclass(frozen=True)
class TrainedRun:
    """A trained model as evaluation, generation and export need it.

    Attributes:
      folder: the run's output folder; None of a shipped model.
      step: steps the parameters were trained for; None of a shipped model.
      data: the text it was trained on, to be read with its own tokenizer (see `readable`).
      started_in: the folder that relative paths in `data` were meant from, where it is known.
    """

    folder: Path | None
    step: int | None
    model: nn.Module
    params: Any
    tokenizer: Tokenizer
    data: DataConfig
    started_in: str | None = None

    @property
    def title(self) -> str:
        """Which parameters these are, for messages."""
        return "shipped model" if self.step is None else f"checkpoint of step {self.step}"

    def readable(self) -> DataConfig:
        """`data` with its paths as they are to be read from the current folder."""
        places = {
            name: located(path, self.started_in)
            for name in ("source", "valid_source")
            if (path := getattr(self.data, name)) is not None
        }
        return replace(self.data, **places)


def open_run(
    name: str | Path, step: int | None = None, code: str | Path | None = None
) -> TrainedRun:
    """Reads the newest whole checkpoint of a run, or a shipped model.

    Args:
      name: a run's output folder, its `checkpoints` folder, one checkpoint's folder, or one of
        `pretrained.names()`, where no folder is called so.
      step: which checkpoint; None takes the newest that is whole.
      code: the Python file that the run was trained from, which is run; None where the run is of
        this library's models, or the file is imported already.

    Raises:
      FileNotFoundError: there is nothing of this name.
      ValueError: a damaged checkpoint or tokenizer, or a tokenizer that is not the run's.
    """
    path = expanded_path(name, "the run")
    if code is not None:
        own_code.load(code)
    if path.is_dir():
        return reading.read_newest(path, step, _open)
    if path.exists():
        raise FileNotFoundError(f"{name} is a file; allowed: {ALLOWED}")
    if str(name) not in pretrained.names():
        raise FileNotFoundError(_unknown(path))
    if step is not None:
        checks.refuse("--step", step, f"none of {name}, which has no checkpoints")
    return _shipped(str(name))


def _open(folder: Path, run: dict[str, Any]) -> TrainedRun:
    params, model, experiment = reading.read_model(folder, run)
    tokenizer = run_tokenizer.tokenizer_of(folder, run)
    return TrainedRun(
        folder=reading.output_of(folder),
        step=run["step"],
        model=model,
        params=params,
        tokenizer=tokenizer,
        data=run_tokenizer.read_with(experiment.data, tokenizer),
        started_in=run.get("working_directory"),
    )


def _shipped(name: str) -> TrainedRun:
    model, params, tokenizer = pretrained.load(name)
    # What its card says it was trained on.
    data = DataConfig(
        source="sotu", tokenizer=tokenizer.name, sequence_length=model.config.trained_length
    )
    return TrainedRun(None, None, model, jax.tree.map(jnp.asarray, params), tokenizer, data)


def _unknown(path: Path) -> str:
    shipped = pretrained.names()
    folders = []
    with suppress(OSError):
        folders = sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir())
    near = near_matches(path.name, [*folders, *shipped])
    return f"no run at {path}: there is no such folder{near}; shipped models: {', '.join(shipped)}"
