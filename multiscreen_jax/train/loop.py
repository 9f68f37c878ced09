"""The training loop.

    restore or initialise -> step, step, step ... -> log | evaluate | checkpoint -> stop

The same command run again continues where the last checkpoint ended. Batches are a function of
their number, and the number of the next batch is the number of steps taken, so nothing but the
state has to be restored for the continued run to see the same losses, bit for bit.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from multiscreen_jax import sharding
from multiscreen_jax.cleanup import afterwards
from multiscreen_jax.data.pipeline import device_arrays
from multiscreen_jax.ownership import Owner, owned
from multiscreen_jax.train import (
    checkpoint,
    config_json,
    metrics,
    own_code,
    provenance,
    reading,
    together,
)
from multiscreen_jax.train.checkpoint import Checkpoints
from multiscreen_jax.train.config import ExperimentConfig, resolved
from multiscreen_jax.train.errors import (
    EndedTogether,
    NonFiniteLoss,
    NotWritten,
    short_reason,
    writing,
)
from multiscreen_jax.train.host_memory import keep_freed_memory, runs_on_cpu
from multiscreen_jax.train.progress import Reporter
from multiscreen_jax.train.report import model_health, write_environment, write_samples
from multiscreen_jax.train.setup import Run, make_output_dir, prepare, usable_output_dir
from multiscreen_jax.train.signals import StopRequest

CONFIG_FILE = "config.json"
_TOLD = ("losses/", "metrics/")  # what models sow, see `step.loss_and_gradients`


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended: at which step, whether by a signal, its last record, its parameters."""

    step: int
    stopped_by: str | None
    record: dict[str, Any]
    params: Any


def train(config: ExperimentConfig) -> Result:
    """Trains, or continues to train, the experiment of a config in config.train.output_dir.

    Raises:
      ValueError: one line on a setting that cannot be used, also when it contradicts the data or
        a checkpoint that is already there.
      FolderInUse: another process trains in the output folder.
      NonFiniteLoss: a loss was not finite and train.on_nonfinite is "stop".
      NotWritten: a checkpoint or another file of the run could not be written.
    """
    config = resolved(config)
    if runs_on_cpu():
        keep_freed_memory()
    sharding.divide_cpu(config.mesh.cpu_devices)
    with contextlib.ExitStack() as held:
        # First of all, so that a second run in the folder changes nothing there.
        owner = together.all_or_none(lambda: _take_output_dir(config, held))
        together.agree(provenance.facts(config))
        folder = together.all_or_none(lambda: make_output_dir(config.train.output_dir))
        axes = {name: getattr(config.mesh, name) for name in sharding.WITH_EXPERTS}
        mesh = sharding.make_mesh(**axes)
        checkpoints = Checkpoints(folder, config.train.keep_last, config.train.keep_best, owner)
        reporter = Reporter(config.train.steps)
        with afterwards(reporter.close), afterwards(checkpoints.close):
            with StopRequest() as stop, jax.set_mesh(mesh):
                run = prepare(config, mesh, checkpoints, reporter.say)
                sinks = together.all_or_none(lambda: _open_record(run, reporter))
                with afterwards(sinks.close):
                    result = _run(run, stop, sinks, reporter)
            if result.stopped_by is None:  # on one device, outside the mesh
                together.all_or_none(lambda: _report_end(run, result.record, reporter))
            return result


def _take_output_dir(config: ExperimentConfig, held: contextlib.ExitStack) -> Owner | None:
    """Makes the output folder the first process's own until `held` ends."""
    if jax.process_index() > 0:
        return None
    metrics.check(config.train)
    with usable_output_dir(config.train.output_dir):
        return held.enter_context(owned(Path(config.train.output_dir)))


def _open_record(run: Run, reporter: Reporter) -> metrics.Sinks:
    """Writes what is known before the first step, and opens what the steps are written to."""
    settings, described = run.config.train, config_json.to_dict(run.config)
    if jax.process_index() == 0:
        with writing(settings.output_dir):
            config_json.save(run.config, Path(settings.output_dir) / CONFIG_FILE)
            if note := own_code.keep(run.config, Path(settings.output_dir)):
                reporter.say(note)
            write_environment(run)
    unwritten = checkpoint.unwritten_metrics(run.checkpoints.folder, run.start)
    return metrics.open_sinks(settings, described, run.start, unwritten, reporter.say)


def _run(run: Run, stop: StopRequest, sinks: metrics.Sinks, reporter: Reporter) -> Result:
    """Makes the steps, and sees that all of them are on the disk."""
    settings = run.config.train
    try:
        number, stopped_by, record = _steps(run, stop, sinks, reporter)
        run.checkpoints.finish()
    except NotWritten as error:
        if sinks.error is None:
            raise
        raise NotWritten(f"{sinks.error}; {error}") from error

    def check_record() -> None:
        sinks.close()
        if sinks.error is not None:
            raise NotWritten(f"{sinks.error}; stopped after step {number} and saved")

    together.all_or_none(check_record)
    if stopped_by is not None:
        reporter.say(
            f"{stopped_by}: stopped after step {number} of {settings.steps} and saved; "
            "run the same command again to continue"
        )
    return Result(number, stopped_by, record, run.state.params)


def _steps(
    run: Run, stop: StopRequest, sinks: metrics.Sinks, reporter: Reporter
) -> tuple[int, str | None, dict[str, Any]]:
    """Steps until the end or a signal; returns (steps taken, the signal, last record)."""
    settings = run.config.train
    collector = _Collector(run, sinks, reporter)
    trace = _Trace(settings, run.start, reporter.say)
    number, stopped_by = run.start, None
    batches = run.pipeline.iterate(run.start)
    for number in range(run.start + 1, settings.steps + 1):
        batch = next(batches)
        assert run.step is not None
        placed = sharding.place_batch(device_arrays(batch), run.batch_sharding)
        trace.before(number)
        with jax.transfer_guard("disallow"):
            run.state, values = run.step(run.state, placed)
        trace.after(number, run.state.step)
        collector.add(number, values)
        if sinks.error is not None:
            stop.ask(str(sinks.error))
        stopped_by = stop.after(number) if number < settings.steps else None
        last = number == settings.steps or stopped_by is not None
        extra: dict[str, Any] = {}
        if run.validation and (_due(number, settings.evaluate_every) or number == settings.steps):
            collector.check_finite()
            extra |= run.validation(run.state.params)
        if _due(number, settings.health_every):
            extra |= model_health(run.model, run.state.params, placed)
        save = _due(number, settings.checkpoint_every) or last
        if extra or save:
            collector.flush(extra)
        if save:
            facts = checkpoint.run_facts(
                run.config,
                number,
                run.pipeline.fingerprint,
                collector.skipped,
                sinks.unwritten,
                run.origin,
            )
            run.checkpoints.save(run.state, facts, extra.get("validation_loss"))
            collector.restart_clock()
        if last:
            break
    collector.flush({})
    return number, stopped_by, collector.record


class _Collector:
    """Fetches a step's metrics one step late, so that the devices never wait for the host."""

    def __init__(self, run: Run, sinks: metrics.Sinks, reporter: Reporter) -> None:
        data, model = run.config.data, run.config.model
        self.record: dict[str, Any] = {}
        self._settings, self._checkpoints = run.config.train, run.checkpoints
        self._sinks, self._reporter = sinks, reporter
        # A backward pass counts twice a forward one; screening windows count as they begin.
        self._work = run.config.objective.work(model, data.batch_size, data.sequence_length)
        self._pending: tuple[int, Any] | None = None
        self._checked: dict[str, Any] | None = None
        self.skipped = run.skipped
        self.restart_clock()

    def restart_clock(self) -> None:
        """Speed is measured from here: evaluations and saves are not training."""
        self._clock, self._seconds, self._steps_timed = time.perf_counter(), 0.0, 0

    def add(self, number: int, values: Any) -> None:
        """Takes the metrics of a step just dispatched and handles those of the step before."""
        self.flush({})
        self._pending = (number, values)

    def check_finite(self) -> None:
        """Fetches the pending step now and acts on it if it is not finite."""
        if self._pending is None or self._checked is not None:
            return
        number, values = self._pending
        host = jax.device_get(values)
        self._checked = host
        self._seconds = time.perf_counter() - self._clock
        self._steps_timed += 1
        if bool(host["finite"]):
            return
        if self._settings.on_nonfinite == "stop":
            self._write(number, host, {})
            also = ""
            try:
                self._checkpoints.finish()
            except (NotWritten, EndedTogether) as error:
                also = f". Also: {error}"
            saved = reading.steps_in(self._checkpoints.folder)
            raise NonFiniteLoss(_nonfinite_text(number, host, saved) + also)
        if self._settings.on_nonfinite == "skip":
            self.skipped += 1
            self._reporter.say(f"step {number} is not finite: its update is skipped")

    def flush(self, extra: dict[str, Any]) -> None:
        """Writes the pending step's record, if it is to be logged, with more values in it."""
        if self._pending is None:
            return
        self.check_finite()
        (number, _), host = self._pending, self._checked
        self._pending = self._checked = None
        assert host is not None
        if extra or _due(number, self._settings.log_every) or number == self._settings.steps:
            self._write(number, host, extra)

    def _write(self, number: int, host: Any, extra: dict[str, Any]) -> None:
        rate = self._steps_timed / max(self._seconds, 1e-9)
        self.restart_clock()
        loss = np.asarray(host["loss"])
        self.record = {
            "step": number,
            "loss": float(loss),
            "loss_hex": metrics.float_hex(loss),
            "learning_rate": float(host["learning_rate"]),
            "gradient_norm": float(host["gradient_norm"]),
            "update_norm": float(host["update_norm"]),
            f"{self._work.name}_per_second": rate * self._work.units,
            "model_flops_per_second": rate * self._work.flops,
            "skipped_updates": self.skipped,
            **{name: float(x) for name, x in host.items() if name.startswith(_TOLD)},
            **extra,
        }
        self._sinks.write(self.record)
        self._reporter.update(self.record)


def _due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0


class _Trace:
    """Traces train.profile_steps into OUTPUT/profile, in the first process.

    A trace that cannot be written is named and left out.
    """

    def __init__(self, settings: Any, start: int, say: Callable[[str], None]) -> None:
        self._folder, self._say = f"{settings.output_dir}/profile", say
        self._steps = range(0)
        if settings.profile_steps is not None and jax.process_index() == 0:
            first, last = settings.profile_steps
            self._steps = range(max(first, start + 1), min(last, settings.steps) + 1)

    def before(self, number: int) -> None:
        if self._steps and number == self._steps[0]:
            self._try(lambda: jax.profiler.start_trace(self._folder))

    def after(self, number: int, made: jax.Array) -> None:
        if self._steps and number == self._steps[-1]:
            jax.block_until_ready(made)
            self._try(jax.profiler.stop_trace)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (OSError, RuntimeError) as error:
            self._steps = range(0)
            self._say(f"no trace in {self._folder}: {short_reason(error)}")


def _nonfinite_text(number: int, host: Any, saved: list[int]) -> str:
    names = ("loss", "gradient_norm", "update_norm")
    values = ", ".join(f"{name} {float(host[name]):g}" for name in names)
    before = f"; the newest checkpoint is of step {saved[-1]}" if saved else ""
    return (
        f"step {number} is not finite ({values}){before}. Set train.on-nonfinite to skip or "
        "continue, or lower optim.learning-rate"
    )


def _report_end(run: Run, record: dict[str, Any], reporter: Reporter) -> None:
    if run.validation and record and jax.process_index() == 0:  # it reads the batches again
        reporter.say(run.validation.summary(record))
    if run.config.train.sample_prompts:
        with writing(run.config.train.output_dir):
            write_samples(run, reporter.say)
    reporter.say(f"done: {run.config.train.output_dir}")
