"""Checkpoints: written by Orbax in the background, sealed with a manifest, verified when read.

    OUTPUT/checkpoints/120/params          the parameters
    OUTPUT/checkpoints/120/optimizer       step and optimizer state
    OUTPUT/checkpoints/120/carry           what the objective hands on, where it does
    OUTPUT/checkpoints/120/run             JSON: config, data position, fingerprint of the data
    OUTPUT/checkpoints/120/manifest.json   checksum of every file above, written last
    OUTPUT/checkpoints/.pending-120        facts for the manifest, there until it is

The folder's number is the number of steps taken, which is also the number of the next batch.

Several processes write and read one folder, which all of them must see: Orbax has each write its
arrays' shares, and the first process does everything else.
"""

import json
import math
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo, PreservationContext

from multiscreen_jax.cleanup import afterwards
from multiscreen_jax.json_files import read_object
from multiscreen_jax.ownership import Owner
from multiscreen_jax.train import config_json, manifest, orbax_threads, together
from multiscreen_jax.train.errors import CheckpointNotSaved, short_reason
from multiscreen_jax.train.manifest import DamagedCheckpoint
from multiscreen_jax.train.reading import (
    FOLDER,
    is_unfinished,
    items_of,
    marker,
    read_state,
    run_of,
    steps_in,
)
from multiscreen_jax.train.state import TrainState

_REFUSED = "refused"
_ITEMS = {
    "params": ocp.args.StandardSave,
    "optimizer": ocp.args.StandardSave,
    "carry": ocp.args.StandardSave,
    "run": ocp.args.JsonSave,
}
_COMMITTED = "commit_success.txt"  # Orbax's last file in a folder, before it gets its name
_NONE, _ALL_DAMAGED = 0, -1  # in place of a step's number, which is 1 or more


class Checkpoints:
    """The checkpoints of one run: asynchronous saves, verified restores.

    `save` returns when the arrays have left the devices; a thread waits for the files, writes the
    manifest, and any error in there is raised by the next call of `save`, `finish` or `close`.
    Of several processes all have to call `restore`, `save` and `finish`, in the same order.
    """

    def __init__(
        self,
        output_dir: Path,
        keep_last: int,
        keep_best: int,
        owner: Owner | None = None,
    ) -> None:
        self.folder = Path(output_dir).absolute() / FOLDER
        self._policy = KeepSealed(self.folder, keep_last, keep_best)
        self._owner = owner
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._manager: ocp.CheckpointManager | None = None

    def save(self, state: TrainState, run: dict[str, Any], validation_loss: float | None) -> None:
        """Starts to save a state. `run` is the JSON beside it (see `run_facts`)."""
        self.finish()
        step = run["step"]
        facts = {"step": step, "validation_loss": validation_loss}

        def begin() -> None:
            # Made before the folder exists and removed after the manifest does: it tells a folder
            # that was being written when the run was killed from one that has lost its manifest.
            with _saving(step):
                if self._owner is not None:
                    self._owner.check()
                self.folder.mkdir(parents=True, exist_ok=True)
                marker(self.folder / str(step)).write_text(json.dumps(facts))

        together.all_or_none(begin if _is_first() else None)
        with _saving(step):
            manager = self._open_manager()
            manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(x) for name, x in items_of(state).items()},
                    run=ocp.args.JsonSave(run),
                ),
                force=True,
            )
        self._thread = threading.Thread(target=self._seal, args=(manager, step, facts))
        self._thread.start()

    def finish(self) -> None:
        """Waits for the save under way, if any, and raises its error, if any: in all processes."""
        if self._thread is not None:
            together.all_or_none(self._join)

    def close(self) -> None:
        """Waits for the save under way and removes what is no longer to be kept.

        It may come after an error, so it asks nothing of other processes.
        """
        with afterwards(self._close_manager):
            self._join()
            if _is_first():
                for step in self._policy.surplus():
                    self._remove(step)

    def restore(
        self, abstract: TrainState, check: Callable[[dict[str, Any]], None], say: Callable
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """(state, run facts) of the newest checkpoint that is whole; None when there is none.

        Damaged ones are named through `say`, moved (never deleted) to checkpoints/refused, and
        the one before is tried. `check(run)` may refuse by raising. `abstract` says where every
        array shall lie, whatever mesh wrote it.

        Raises:
          DamagedCheckpoint: there are checkpoints and none can be used.
        """
        # One process compares every byte and tells the others what it found.
        step, refused = together.all_or_none(
            lambda: self._newest_whole(say) if _is_first() else (None, [])
        )
        found = step or (_ALL_DAMAGED if refused else _NONE)
        found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
        if found == _NONE:
            return None
        if found == _ALL_DAMAGED:
            reasons = "; ".join(refused) or "process 0 says why"
            raise DamagedCheckpoint(f"no usable checkpoint in {self.folder}: {reasons}")
        folder = self.folder / str(found)

        def checked() -> dict[str, Any]:
            if not folder.is_dir():
                raise ValueError(
                    f"process {jax.process_index()} does not see {folder}; allowed: a "
                    "train.output-dir that all processes share"
                )
            run = run_of(folder)
            check(run)
            return run

        run = together.all_or_none(checked)
        return read_state(folder, abstract), run

    def _newest_whole(self, say: Callable) -> tuple[int | None, list[str]]:
        """(the newest checkpoint that is whole, or None; what is wrong with newer ones)."""
        refused: list[str] = []
        for step in reversed(steps_in(self.folder)):
            folder = self.folder / str(step)
            try:
                if is_unfinished(folder) and _committed(folder):
                    say(f"checkpoint {step} was saved, but had no manifest yet; written now")
                    with _saving(step):
                        manifest.write(folder, _pending_facts(folder))
                else:
                    manifest.verify(folder)
            except DamagedCheckpoint as error:
                if is_unfinished(folder):
                    say(f"checkpoint {step} was still being written when the run ended; removed")
                    shutil.rmtree(folder)
                    marker(folder).unlink()
                else:
                    say(f"checkpoint {step} is damaged and not used: {error}")
                    refused.append(str(error))
                    self._set_aside(step)
                continue
            # Also of a run killed between the two: a manifest lost later must not be written anew.
            marker(folder).unlink(missing_ok=True)
            return step, refused
        return None, refused

    def _open_manager(self) -> ocp.CheckpointManager:
        # Opened at the first save, after damaged folders were moved out of its sight.
        if self._manager is None:
            orbax_threads.keep_quiet()
            registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
            for item, kind in _ITEMS.items():
                registry.add(item, kind)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                cleanup_tmp_directories=True,
                save_root_metadata=False,
                # A thread that could not make them would leave others waiting for minutes.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            )
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, handler_registry=registry
            )
        return self._manager

    def _close_manager(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()

    def _seal(self, manager: ocp.CheckpointManager, step: int, facts: dict[str, Any]) -> None:
        try:
            with _saving(step):
                manager.wait_until_finished()
                if _is_first():
                    manifest.write(self.folder / str(step), facts)
                    marker(self.folder / str(step)).unlink(missing_ok=True)
        except Exception as error:  # raised again by `finish`, in the caller's thread
            self._error = error

    def _join(self) -> None:
        """Waits for the thread, if any, and raises its error, if any."""
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _remove(self, step: int) -> None:
        """The run has ended well without it: a network file system may hold on to a file."""
        try:
            shutil.rmtree(self.folder / str(step))
        except OSError as error:
            warnings.warn(
                f"checkpoint {step} is no longer needed and could not be removed: "
                f"{short_reason(error)}",
                stacklevel=2,
            )

    def _set_aside(self, step: int) -> None:
        target = self.folder / _REFUSED
        target.mkdir(exist_ok=True)
        number = sum(1 for path in target.iterdir() if path.name.split(".")[0] == str(step))
        (self.folder / str(step)).rename(target / f"{step}.{number}")


class KeepSealed:
    """Orbax policy: the newest n checkpoints and the best m, counting only sealed ones.

    A checkpoint without a manifest yet is kept and does not count, so that at every moment the
    number of checkpoints that a restart can use is the number asked for.
    """

    def __init__(self, folder: Path, keep_last: int, keep_best: int) -> None:
        self._folder, self._last, self._best = folder, keep_last, keep_best

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        del context
        surplus = self.surplus()
        return [info.step not in surplus for info in checkpoints]

    def surplus(self) -> set[int]:
        """Sealed checkpoints that are neither among the newest nor among the best."""
        losses = {}
        for step in steps_in(self._folder):
            if manifest.exists(self._folder / str(step)):
                try:
                    losses[step] = manifest.read(self._folder / str(step))["validation_loss"]
                except DamagedCheckpoint:
                    continue  # not ours to delete
        # A loss that is not finite is none: NaN has no place in an order.
        evaluated = [
            step for step, loss in losses.items() if loss is not None and math.isfinite(loss)
        ]
        best = sorted(evaluated, key=lambda step: (losses[step], -step))[: self._best]
        return set(losses) - set(list(losses)[-self._last :]) - set(best)


@contextmanager
def _saving(step: int) -> Iterator[None]:
    """Whatever goes wrong in here is a CheckpointNotSaved that names the step."""
    try:
        yield
    except Exception as error:
        raise CheckpointNotSaved(
            f"could not save checkpoint {step}: {short_reason(error)}"
        ) from error


def _committed(folder: Path) -> bool:
    """Whether Orbax has written all of a checkpoint, so that nothing but its manifest lacks.

    Orbax leaves this file in the folder and in every item's; `is_checkpoint_finalized` looks at
    names only, where folders can be renamed.
    """
    kept = [item for item in _ITEMS if item != "carry" or (folder / item).is_dir()]
    return all((folder / item / _COMMITTED).is_file() for item in (".", *kept))


def _pending_facts(folder: Path) -> dict[str, Any]:
    """What the manifest of a checkpoint was to say; a marker that is cut says only the step."""
    try:
        said = read_object(marker(folder), optional={"validation_loss": float | None})
    except ValueError:
        said = {}
    return {"step": int(folder.name), "validation_loss": said.get("validation_loss")}


def run_facts(
    config: Any,
    step: int,
    fingerprint: str,
    skipped: int,
    unwritten: Sequence[str],
    origin: dict[str, Any],
) -> dict[str, Any]:
    """The JSON saved beside a state: all that a continued run has to know (see `setup.Run`)."""
    return {
        **origin,
        "step": step,
        "skipped_updates": skipped,
        "unwritten_metrics": list(unwritten),
        "data_fingerprint": fingerprint,
        "config": config_json.to_dict(config),
    }


def unwritten_metrics(folder: Path, step: int) -> list[str]:
    """Lines that metrics.jsonl lacked when a run in `folder` was saved at a step; none at 0."""
    return run_of(folder / str(step)).get("unwritten_metrics", []) if step else []


def _is_first() -> bool:
    return jax.process_index() == 0
