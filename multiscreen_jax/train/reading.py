"""Checkpoints are found and read, also while their run goes on and removes old ones."""

import contextlib
import functools
import gc
import logging
import reprlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath  # Orbax's own kind of path

from multiscreen_jax.json_files import check_keys, read_object
from multiscreen_jax.models.registry import build
from multiscreen_jax.paths import expanded_path
from multiscreen_jax.sharding import path_name
from multiscreen_jax.train import config_json, manifest, own_code
from multiscreen_jax.train.manifest import DamagedCheckpoint
from multiscreen_jax.train.state import TrainState, abstract_params

FOLDER = "checkpoints"
# Of a live run another checkpoint has to be sealed between any two of them.
_TRIES = 10
_RUN_FACTS = {"step": int, "skipped_updates": int, "data_fingerprint": str, "config": dict}
# Runs of earlier versions lack these.
_LATER_FACTS = {
    "tokenizer": dict,
    "working_directory": str,
    "valid_fingerprint": str | None,
    "inherited": dict | None,
    "unwritten_metrics": list,
}
TOKENIZER_FACTS = {
    "name": str,
    "settings": dict,
    "vocab_size": int,
    "eos_id": int | None,
    "fingerprint": str,
}
_Read = TypeVar("_Read")


def steps_in(folder: Path) -> list[int]:
    """Numbers of the checkpoints in a `checkpoints` folder, ascending; [] when there is none."""
    try:
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    except (FileNotFoundError, NotADirectoryError):
        return []


def marker(folder: Path) -> Path:
    """The file that exists while a checkpoint's folder is being written."""
    return folder.with_name(f".pending-{folder.name}")


def is_unfinished(folder: Path) -> bool:
    """Whether a checkpoint is being written, or was when its run was killed."""
    return not manifest.exists(folder) and marker(folder).exists()


def verified_run(folder: Path) -> dict[str, Any]:
    """The run facts of one checkpoint, after every byte of it was compared with its manifest."""
    manifest.verify(folder)
    return run_of(folder)


def run_of(folder: Path) -> dict[str, Any]:
    """The run facts of one checkpoint (see `checkpoint.run_facts`)."""
    path = folder / "run" / "metadata"
    try:
        run = read_object(path, keys=_RUN_FACTS, optional=_LATER_FACTS)
        sections = dict.fromkeys(config_json.SECTIONS, dict)
        check_keys(run["config"], f"{path}: config", sections)
        if "tokenizer" in run:
            check_keys(run["tokenizer"], f"{path}: its tokenizer", TOKENIZER_FACTS)
            settings = run["tokenizer"]["settings"]
            _check_strings(settings.values(), f"{path}: its tokenizer: settings")
        _check_strings(run.get("unwritten_metrics", []), f"{path}: unwritten_metrics")
        return run
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedCheckpoint(f"{path} is missing") from None
    except ValueError as error:
        raise DamagedCheckpoint(str(error)) from None


def _check_strings(values: Iterable[Any], what: str) -> None:
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"{what} has {reprlib.repr(value)}; allowed: strings")


def checkpoints_in(path: str | Path) -> tuple[Path, int | None]:
    """(the folder that holds a run's checkpoints, the step if `path` is one of them)."""
    path = expanded_path(path, "the run").absolute()
    # First, since a run's folder may have a number for its name too.
    if (path / FOLDER).is_dir():
        return path / FOLDER, None
    return (path.parent, int(path.name)) if path.name.isdecimal() else (path, None)


def output_of(checkpoint: Path) -> Path:
    """The output folder of the run that a checkpoint's folder is in."""
    is_in_run = checkpoint.parent.name == FOLDER
    return checkpoint.parents[1] if is_in_run else checkpoint.parent


def find_checkpoint(path: str | Path, step: int | None = None) -> tuple[Path, dict[str, Any]]:
    """(folder, run facts) of the newest whole checkpoint, or of the one of a step.

    Args:
      path: a run's output folder, its `checkpoints` folder, or one checkpoint's folder.
      step: which checkpoint; None takes the newest that is whole.

    A newer one that is damaged is named in a warning; one that is being written is passed over.
    What a live run removes meanwhile is not damaged: the newest is looked for again.

    Raises:
      FileNotFoundError: there is no checkpoint.
      DamagedCheckpoint: the one asked for, or all of them, are damaged.
    """
    folder, own = checkpoints_in(path)
    if own is not None and step not in (None, own):
        raise FileNotFoundError(f"no checkpoint of step {step} in {path}, which is one of its own")
    wanted = step if own is None else own
    for _ in range(_TRIES):
        sealed = _sealed_in(folder)
        steps = steps_in(folder)
        if wanted is not None:
            if wanted not in steps:
                raise FileNotFoundError(
                    f"no checkpoint of step {wanted} in {folder}; there are {steps}"
                )
            steps = [wanted]
        if not steps:
            raise FileNotFoundError(f"no checkpoint in {path}")
        found, damaged = _newest_whole(folder, steps)
        # A run removes a checkpoint only after it has sealed a newer one.
        if damaged and _sealed_in(folder) != sealed:
            continue
        if found is None:
            reasons = "; ".join(damaged.values())
            raise DamagedCheckpoint(f"no usable checkpoint in {folder}: {reasons}")
        for newer, reason in damaged.items():
            if not is_unfinished(folder / str(newer)):
                warnings.warn(
                    f"checkpoint {newer} is damaged, {found[0].name} is used instead: {reason}",
                    stacklevel=2,
                )
        return found
    raise _too_fast(folder)


def read_newest(
    path: str | Path, step: int | None, read: Callable[[Path, dict[str, Any]], _Read]
) -> _Read:
    """Returns `read(folder, run facts)` of the checkpoint that `find_checkpoint` finds.

    When its run removed any of it before the reading ended, the next one is read, since arrays
    whose files are gone may read as zeros.
    """
    for _ in range(_TRIES):
        folder, run = find_checkpoint(path, step)
        results: list[_Read] = []
        failure = None
        with _held_back() as held:
            try:
                results.append(read(folder, run))
            except Exception as error:
                failure = error
            if not manifest.is_complete(folder):
                failure, results = None, []
                gc.collect()  # while nobody hears what reads under way have to say
                continue
        for tell in held:
            tell()
        if failure is not None:
            raise failure
        return results[0]
    raise _too_fast(checkpoints_in(path)[0])


def load_params(path: str | Path, step: int | None = None) -> tuple[Any, Any, Any]:
    """(params, model, config) of a trained model, for evaluation and generation.

    Args:
      path, step: see `find_checkpoint`.
    Returns:
      The parameters on the default device, the Linen module, and the run's ExperimentConfig
      (its `model` carries the trained length).
    """
    return read_newest(path, step, read_model)


def read_model(folder: Path, run: dict[str, Any]) -> tuple[Any, Any, Any]:
    """`load_params` of a checkpoint that `find_checkpoint` returned."""
    try:
        config = config_json.from_dict(run["config"])
    except (ValueError, TypeError) as error:
        copy = output_of(folder) / own_code.COPY
        own = f"; it was trained from {copy}: read it, then give it as --code" * copy.is_file()
        raise ValueError(f"{folder} has a config that cannot be used: {error}{own}") from None
    model = build(config.model)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        abstract_params(model),
    )
    return read_item(folder, "params", abstract), model, config


def read_item(folder: Path, item: str, abstract: Any) -> Any:
    """One item of a checkpoint, onto the shapes, dtypes and shardings of `abstract`.

    ValueError naming the first array that the checkpoint lacks, or has more or of another shape.
    """
    _refuse_other_arrays(folder / item, abstract)
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(folder / item, abstract)


def read_state(folder: Path, abstract: TrainState) -> TrainState:
    """A whole state, onto the shapes, dtypes and shardings of `abstract`."""
    items = items_of(abstract)
    read = {name: read_item(folder, name, item) for name, item in items.items()}
    return TrainState(params=read["params"], **read["optimizer"], **read.get("carry", {}))


def has_optimizer_of(folder: Path, abstract: TrainState) -> bool:
    """Whether a checkpoint's optimizer state has the arrays of this one."""
    item = items_of(abstract)["optimizer"]
    return _stored_shapes(folder / "optimizer") == _shapes(item)


def items_of(state: TrainState) -> dict[str, Any]:
    """A state by the items in which it is saved."""
    optimizer = {"step": state.step, "optimizer_state": state.optimizer_state}
    # An item is a tree, and a carry may be one array.
    carry = {} if state.carry is None else {"carry": {"carry": state.carry}}
    return {"params": state.params, "optimizer": optimizer, **carry}


def _newest_whole(
    folder: Path, steps: list[int]
) -> tuple[tuple[Path, dict[str, Any]] | None, dict[int, str]]:
    """(the newest whole one with its run facts, or None; what is wrong with newer ones)."""
    damaged: dict[int, str] = {}
    for number in reversed(steps):
        found = folder / str(number)
        try:
            return (found, verified_run(found)), damaged
        except DamagedCheckpoint as error:
            damaged[number] = str(error)
    return None, damaged


def _sealed_in(folder: Path) -> list[int]:
    return [step for step in steps_in(folder) if manifest.exists(folder / str(step))]


@contextlib.contextmanager
def _held_back() -> Iterator[list[Callable[[], object]]]:
    """Keeps what Python would print of errors that nobody can catch; the list's functions print it.

    Such errors are those of several reads at once, of which one alone can be raised.
    """
    held: list[Callable[[], object]] = []
    hook, logger = sys.unraisablehook, logging.getLogger("asyncio")

    def keep(record: logging.LogRecord) -> bool:
        held.append(functools.partial(logger.handle, record))
        return False

    sys.unraisablehook = lambda late: held.append(functools.partial(hook, late))
    logger.addFilter(keep)
    try:
        yield held
    finally:
        sys.unraisablehook = hook
        logger.removeFilter(keep)


def _too_fast(folder: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"{folder}: the run removed {_TRIES} checkpoints while they were read; try again, or with "
        "the run at rest"
    )


def _refuse_other_arrays(path: Path, abstract: Any) -> None:
    there, wanted = _stored_shapes(path), _shapes(abstract)
    for name, shape in wanted.items():
        if name not in there:
            raise ValueError(f"{path} is of another model: it has no {name}, of shape {shape}")
        if there[name] != shape:
            raise ValueError(
                f"{path} is of another model: its {name} has shape {there[name]}, not {shape}"
            )
    for name, shape in there.items():
        if name not in wanted:
            raise ValueError(f"{path} is of another model: it has {name} besides, of shape {shape}")


def _stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    # Unlike a Checkpointer it says nothing of files that may be absent.
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        return _shapes(handler.metadata(epath.Path(path)).tree)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}
