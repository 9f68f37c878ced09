"""Everything a run needs before its first step: checked, opened, restored and compiled."""

import dataclasses
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from multiscreen_jax import sharding
from multiscreen_jax.data import Pipeline, Tokenizer, describe_data, open_pipeline
from multiscreen_jax.data.pipeline import device_arrays
from multiscreen_jax.layers.parameters import facts_of
from multiscreen_jax.models.registry import build
from multiscreen_jax.ownership import FolderInUse
from multiscreen_jax.paths import checked_path
from multiscreen_jax.train import (
    checks,
    config_json,
    continuing,
    distributed,
    manifest,
    reading,
    run_tokenizer,
    together,
)
from multiscreen_jax.train.checkpoint import Checkpoints
from multiscreen_jax.train.config import ExperimentConfig, override
from multiscreen_jax.train.errors import NotWritten, is_full_disk, short_reason
from multiscreen_jax.train.optimizer import make_optimizer, make_schedule, update_count
from multiscreen_jax.train.state import (
    TrainState,
    abstract_params,
    abstract_state,
    create_state,
)
from multiscreen_jax.train.step import experiment_step, jit_step
from multiscreen_jax.train.validation import Validation
from pallas_kernels.common.dispatch import record_choices

Say = Callable[[str], None]


@dataclasses.dataclass
class Run:
    """A run that is ready to make its next step."""

    config: ExperimentConfig
    model: nn.Module
    mesh: Mesh
    pipeline: Pipeline
    prompts: list[np.ndarray]  # of train.sample_prompts
    validation: Validation | None
    checkpoints: Checkpoints
    state: TrainState
    start: int
    skipped: int
    origin: dict[str, Any]  # what every checkpoint says of where the run comes from
    step: Callable | None
    implementations: dict[str, set[str]]  # of every op in the step
    batch_sharding: NamedSharding


def prepare(config: ExperimentConfig, mesh: Mesh, checkpoints: Checkpoints, say: Say) -> Run:
    """Opens data, restores or makes the state, and compiles the step.

    Raises:
      ValueError: settings that contradict each other, the data, or an existing checkpoint.
    """
    rows = config.data.batch_size // config.train.accumulate
    sharding.check_batch(rows, config.data.sequence_length, mesh)
    model = build(config.model)
    facts = facts_of(model)
    if note := sharding.check_parameters(abstract_params(model), facts, mesh):
        say(note)
    where = sharding.batch_sharding(mesh)
    pipeline = together.all_or_none(lambda: _open(config, "train", where))
    together.agree({"content of data.source": pipeline.fingerprint})
    if files := describe_data(config.data):
        say(files)
    if note := pipeline.loss_note():
        say(note)
    if absent := set(config.objective.fields) - pipeline.batch(0).keys():
        checks.refuse(
            "data.source",
            config.data.source,
            f"one whose batches have {', '.join(sorted(absent))}, which "
            f"{type(config.objective).__name__} needs",
        )
    if pipeline.vocab_size > config.model.vocab_size:
        checks.refuse(
            "model.vocab_size",
            config.model.vocab_size,
            f"at least {pipeline.vocab_size}, the tokens of data.source {config.data.source}",
        )
    for name in ("dtype", "param_dtype"):
        dtype = getattr(config.model, name)
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            checks.refuse(f"model.{name}", dtype, f"{dtype} with JAX_ENABLE_X64=1, else float32")
    prompts = [_prompt_tokens(pipeline.tokenizer, text) for text in config.train.sample_prompts]
    # Opened for its fingerprint too, so that it is known again when it has moved.
    is_held_out = bool(config.train.evaluate_every) or config.data.valid_source is not None
    held_out = None
    if is_held_out:
        held_out = together.all_or_none(lambda: _open(config, "valid", where))
        together.agree({"content of the validation split": held_out.fingerprint})
    optimizer = make_optimizer(config.optim, config.train.steps, facts)
    state, start, skipped, trained_length, origin = _restore_or_create(
        config, optimizer, mesh, checkpoints, pipeline, held_out, say
    )
    config = override(config, model={"trained_length": trained_length})
    model, step = build(config.model), experiment_step(config)
    validation = None
    if config.train.evaluate_every and held_out is not None:
        batches = config.train.evaluate_batches
        validation = Validation(config.objective, model, held_out, batches, where)
    compiled, implementations = None, {}  # a finished run has no step to make
    if start < config.train.steps:
        with record_choices() as implementations:
            compiled = _compile(step, state, _abstract_batch(pipeline, config, where), mesh, say)
    distributed.wait_for_all("step compiled")
    return Run(
        config=config,
        model=model,
        mesh=mesh,
        pipeline=pipeline,
        prompts=prompts,
        validation=validation,
        checkpoints=checkpoints,
        state=state,
        start=start,
        skipped=skipped,
        origin=origin,
        step=compiled,
        implementations=implementations,
        batch_sharding=where,
    )


def make_output_dir(path: str) -> Path:
    """Creates the output folder; ValueError when nothing can be written there."""
    folder = checked_path(path, "train.output-dir")
    with usable_output_dir(path):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


@contextmanager
def usable_output_dir(path: str) -> Iterator[None]:
    """ValueError when the output folder, or a file in it, is refused in here."""
    try:
        yield
    except FolderInUse:
        raise
    except OSError as error:
        if is_full_disk(error):  # it may have room again
            raise NotWritten(f"could not write {path}: {short_reason(error)}") from error
        raise ValueError(
            f"train.output-dir is {path!r}; allowed: a folder that can be written "
            f"({error.strerror})"
        ) from None


def _open(config: ExperimentConfig, split: str, where: NamedSharding) -> Pipeline:
    """A split's batches, of each the rows that this process's devices hold."""
    rows = sharding.process_rows(config.data.batch_size, where)
    return open_pipeline(config.data, split).take(rows.tolist())


def _prompt_tokens(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """Tokens of a sample's prompt; ValueError now rather than after the last step."""
    try:
        tokens = np.asarray(tokenizer.encode(prompt), np.int32)
    except ValueError as error:
        raise ValueError(f"train.sample-prompts has {prompt!r}: {error}") from None
    if not tokens.size:
        raise ValueError(f"train.sample-prompts has {prompt!r}; allowed: at least one token")
    return tokens


def _restore_or_create(
    config: ExperimentConfig,
    optimizer: Any,
    mesh: Mesh,
    checkpoints: Checkpoints,
    pipeline: Pipeline,
    held_out: Pipeline | None,
    say: Say,
) -> tuple[TrainState, int, int, int, dict[str, Any]]:
    """Restores the newest checkpoint or begins a run; keeps the tokenizer in the run's folder.

    Returns:
      The state, steps taken, updates skipped, the longest length that its parameters were trained
      at, by this run or the one it started from, and the run's origin.
    """
    now, output = config_json.to_dict(config), checkpoints.folder.parent
    model = build(config.model)
    origin = {
        "tokenizer": run_tokenizer.facts_of(pipeline.tokenizer),
        "working_directory": os.getcwd(),
        "valid_fingerprint": None if held_out is None else held_out.fingerprint,
        "inherited": None,
    }

    def check(run: dict[str, Any]) -> None:
        where = f"{checkpoints.folder / str(run['step'])}"
        continuing.refuse_other(run, now, origin, pipeline.fingerprint, where)
        copy = run_tokenizer.kept(output)
        if copy is not None:
            holds = f"{output / run_tokenizer.FOLDER} holds tokenizer"
            kept, here = run_tokenizer.facts_of(copy), origin["tokenizer"]
            run_tokenizer.refuse_other(kept, here, holds, "data.source is read with")

    init_carry = functools.partial(config.objective.init_carry, model, config.data.batch_size)
    abstract = abstract_state(model, optimizer, mesh, init_carry)
    restored = checkpoints.restore(abstract, check, say)
    if restored is not None:
        state, run = restored
        _keep_tokenizer(output, pipeline.tokenizer, is_new=False)
        say(f"continues {output} after step {run['step']}")
        trained_length = run["config"]["model"].get("trained_length")
        origin["inherited"] = run.get("inherited")
        return state, run["step"], run["skipped_updates"], trained_length, origin
    length = config.data.sequence_length

    def create() -> TrainState:
        return create_state(model, optimizer, mesh, config.train.seed, init_carry)

    if config.train.init_from is None:
        state = create()
    else:
        state, inherited, origin["inherited"] = _inherit(
            config.train.init_from, now, origin["tokenizer"], abstract, create, say
        )
        where = jax.tree.map(lambda leaf: leaf.sharding, abstract.carry)
        state = state.replace(carry=jax.jit(init_carry, out_shardings=where)())
        updates = int(update_count(state.optimizer_state))
        rate = np.asarray(make_schedule(config.optim, config.train.steps)(updates)).item()
        say(f"the learning rate starts at {rate:g}, after {updates} inherited updates")
        length = max(length, inherited or 0)
    _keep_tokenizer(output, pipeline.tokenizer, is_new=True)
    return state, 0, 0, length, origin


def _keep_tokenizer(output: Path, tokenizer: Tokenizer, is_new: bool) -> None:
    """All processes have to call it; the first looks and writes, also for an old run's lost copy.

    What another process sees of the folder may be older or newer.
    """

    def keep() -> None:
        if is_new or run_tokenizer.kept(output) is None:
            run_tokenizer.keep(output, tokenizer)

    together.all_or_none(keep if jax.process_index() == 0 else None)


def _inherit(
    path: str,
    now: dict[str, Any],
    tokenizer: dict[str, Any],
    abstract: TrainState,
    create: Callable[[], TrainState],
    say: Say,
) -> tuple[TrainState, int | None, dict[str, Any]]:
    """(parameters and optimizer state, trained length, which checkpoint) of another run.

    Steps and data start from 0. The optimizer's own count of updates comes along and is the
    schedule's position: there is no second warm-up.
    """

    def check(folder: Path, run: dict[str, Any]) -> None:
        config_json.refuse_changes(
            {"model": run["config"]["model"]},
            {"model": now["model"]},
            str(folder),
            config_json.INFERENCE_RULES,
        )
        its = run_tokenizer.facts_of(run_tokenizer.tokenizer_of(folder, run))
        trained = f"{folder} was trained with tokenizer"
        run_tokenizer.refuse_other(its, tokenizer, trained, "data.source is read with")

    def read(folder: Path, run: dict[str, Any]) -> tuple[Path, dict[str, Any], str, TrainState]:
        together.all_or_none(lambda: check(folder, run))
        if reading.has_optimizer_of(folder, abstract):
            state = reading.read_state(folder, abstract.replace(carry=None))
        else:
            say(f"{folder} has an optimizer state of other rules; here it starts anew")
            params = reading.read_item(folder, "params", abstract.params)
            state = create().replace(params=params)
        return folder, run, manifest.seal_of(folder), state

    folder, run, seal, state = reading.read_newest(path, _agreed_step(path), read)
    changes = config_json.differences({**config_json.LATER, **run["config"]}, now)
    listed = ", ".join(
        f"{checks.flag_name(name)} {before} -> {after}"
        for name, (before, after) in changes.items()
        if not name.startswith("train.") and name != "model.trained_length"
    )
    say(f"starts from {folder}" + (f" with {listed}" if listed else ""))
    zero = jax.device_put(jnp.zeros((), jnp.int32), abstract.step.sharding)
    inherited = {"step": run["step"], "seal": seal}
    return state.replace(step=zero), run["config"]["model"].get("trained_length"), inherited


def _agreed_step(path: str) -> int | None:
    """Which checkpoint all processes start from; None, the newest, where there is one process."""
    if jax.process_count() == 1:
        return None
    step = together.all_or_none(lambda: reading.find_checkpoint(path)[1]["step"])
    return int(multihost_utils.broadcast_one_to_all(np.int32(step)))


def _abstract_batch(pipeline: Pipeline, config: ExperimentConfig, where: NamedSharding) -> Any:
    rows = config.data.batch_size
    return {
        name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype, sharding=where)
        for name, array in device_arrays(pipeline.batch(0)).items()
    }


def _compile(step: Callable, state: TrainState, batch: Any, mesh: Mesh, say: Say) -> Callable:
    began = time.perf_counter()
    compiled = jit_step(step, state, mesh).lower(state, batch).compile()
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.params))
    say(f"{count:,} parameters; step compiled in {time.perf_counter() - began:.1f} s")
    return compiled
