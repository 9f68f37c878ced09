"""Everything a training run is made of, as nested frozen dataclasses.

    ExperimentConfig(model=MultiscreenConfig(...), data=DataConfig(...), objective=NextToken(),
                     optim=OptimConfig(...), mesh=MeshConfig(...), train=TrainConfig(...))

Every class checks itself when it is built; a bad value is a one-line ValueError that names the
field, those of optim, mesh and train as the command line spells them.
`multiscreen_jax.train.config_json` writes and reads the whole as JSON.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from multiscreen_jax.data import DataConfig
from multiscreen_jax.models.registry import ModelConfig
from multiscreen_jax.objectives import NextToken, Objective
from multiscreen_jax.paths import checked_path, expanded_path
from multiscreen_jax.train import checks


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its learning rate. The defaults are the Multiscreen paper's recipe."""

    name: str = "adamw"
    """The optimizer. One exists: adamw."""
    learning_rate: float = 2.0**-4
    """Peak learning rate. The paper uses 2^-4 for Multiscreen of every size."""
    warmup_steps: int = 2**12
    """Linear warm-up: step s (from 0) runs at peak * min(s + 1, W) / W."""
    schedule: str = "constant"
    """After the warm-up: constant, cosine or linear."""
    decay_steps: int | None = None
    """Steps, warm-up included, at which cosine and linear end. None: train.steps."""
    end_fraction: float = 0.1
    """Cosine and linear end at this fraction of the peak and stay there."""
    b1: float = 0.9
    """Adam's first-moment decay."""
    b2: float = 0.95
    """Adam's second-moment decay."""
    eps: float = 1e-8
    """Added to Adam's denominator."""
    weight_decay: float = 0.0
    """Decoupled decay, times the learning rate, of matrices; scalars and gains never decay."""
    sign_rate: float = 1e-3
    """How far parameters that follow the sign of their gradient move a step (biases of routers)."""
    clip_norm: float | None = None
    """Largest global gradient norm; None: gradients are not clipped."""

    def __post_init__(self) -> None:
        checks.choice("optim.name", self.name, ("adamw",))
        checks.number("optim.learning_rate", self.learning_rate, 0, above=True)
        checks.integer("optim.warmup_steps", self.warmup_steps, 0)
        checks.choice("optim.schedule", self.schedule, ("constant", "cosine", "linear"))
        if self.decay_steps is not None:
            checks.integer("optim.decay_steps", self.decay_steps, max(1, self.warmup_steps))
        checks.number("optim.end_fraction", self.end_fraction, 0, 1)
        checks.number("optim.b1", self.b1, 0, 1, below=True)
        checks.number("optim.b2", self.b2, 0, 1, below=True)
        checks.number("optim.eps", self.eps, 0, above=True)
        checks.number("optim.weight_decay", self.weight_decay, 0)
        checks.number("optim.sign_rate", self.sign_rate, 0)
        if self.clip_norm is not None:
            checks.number("optim.clip_norm", self.clip_norm, 0, above=True)


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices each mesh axis has. The product must be the number of devices."""

    data: int = -1
    """Copies of the model, each with its share of the batch. -1: all devices that are left."""
    fsdp: int = 1
    """Shares of parameters and optimizer state; the batch is divided over these as well."""
    seq: int = 1
    """Shares of every sequence, for contexts that do not fit a device."""
    model: int = 1
    """Shares of heads, feed-forward width and vocabulary."""
    expert: int = 1
    """Shares of the experts of a mixture; the batch is divided over these as well."""
    cpu_devices: int = 1
    """Devices to make of this machine's cores where there is no accelerator: with mesh.data -1
    each trains on its share of the batch, as on a pod. With several processes: of each."""
    join_seconds: int = 300
    """How long a process waits at the start for the run's other processes."""
    heartbeat_seconds: int = 100
    """A process that was silent for so long is lost: all others end, and name it."""

    def __post_init__(self) -> None:
        checks.integer("mesh.cpu_devices", self.cpu_devices, 1)
        checks.integer("mesh.join_seconds", self.join_seconds, 1)
        checks.integer("mesh.heartbeat_seconds", self.heartbeat_seconds, 1)
        axes = ("data", "fsdp", "seq", "model", "expert")
        sizes = tuple(getattr(self, name) for name in axes)
        for name, size in zip(axes, sizes, strict=True):
            checks.integer(f"mesh.{name}", size, 1, also=(-1,))
        if sizes.count(-1) > 1:
            checks.refuse("mesh", sizes, "at most one axis of size -1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, output, checkpoints and reports of a run."""

    steps: int = 1000
    """Optimizer steps. A finished run continues when the same command asks for more; a cosine or
    linear schedule then needs optim.decay-steps, as it had ended with the run."""
    output_dir: str = "runs/default"
    """Folder of metrics.jsonl, config.json, checkpoints and TensorBoard files. Several processes
    have to share it."""
    seed: int = 0
    """Seed of the parameters' initial values (the data's order has its own, data.seed)."""
    accumulate: int = 1
    """Parts a batch is divided into; their gradients are added up inside the step."""
    init_from: str | None = None
    """Run folder or checkpoint whose parameters and optimizer state this run starts from."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; 0: only at the end and when the run is stopped."""
    keep_last: int = 2
    """Newest checkpoints kept."""
    keep_best: int = 0
    """Checkpoints with the lowest validation loss kept besides (of those evaluated)."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    evaluate_every: int = 0
    """Steps between evaluations on the validation split (and one at the end); 0: never."""
    evaluate_batches: int = 8
    """Validation batches per evaluation."""
    health_every: int = 0
    """Steps between reports on the model (a Multiscreen's windows, widths and dead tiles), where
    there are any; 0: never."""
    on_nonfinite: str = "stop"
    """A loss or gradient that is not finite: stop, skip the update, or continue regardless."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts continued when the run ends."""
    sample_temperature: float = 0.8
    """Of the continuations (drawn with train.seed); 0 takes the most likely tokens."""
    sample_tokens: int = 128
    """New tokens per prompt."""
    profile_steps: tuple[int, int] | None = None
    """First and last step traced into OUTPUT/profile (open with TensorBoard or Perfetto); of
    several processes the first is traced."""
    tensorboard: bool = True
    """Write OUTPUT/tensorboard (needs the package tensorboardX)."""
    wandb_project: str | None = None
    """Weights & Biases project (needs the package wandb)."""

    def __post_init__(self) -> None:
        checks.integer("train.steps", self.steps, 1)
        checked_path(self.output_dir, "train.output-dir")
        if self.init_from is not None:
            checked_path(self.init_from, "train.init-from")
        checks.integer("train.seed", self.seed, 0, checks.LARGEST_SEED)
        checks.integer("train.accumulate", self.accumulate, 1)
        checks.integer("train.keep_last", self.keep_last, 1)
        checks.integer("train.log_every", self.log_every, 1)
        checks.integer("train.evaluate_batches", self.evaluate_batches, 1)
        checks.number("train.sample_temperature", self.sample_temperature, 0)
        checks.integer("train.sample_tokens", self.sample_tokens, 1)
        for name in ("checkpoint_every", "keep_best", "evaluate_every", "health_every"):
            checks.integer(f"train.{name}", getattr(self, name), 0)
        checks.choice("train.on_nonfinite", self.on_nonfinite, ("stop", "skip", "continue"))
        if self.keep_best and not self.evaluate_every:
            checks.refuse("train.keep_best", self.keep_best, "0 where train.evaluate-every is 0")
        prompts, traced = self.sample_prompts, self.profile_steps
        if not isinstance(prompts, tuple) or not all(isinstance(text, str) for text in prompts):
            checks.refuse("train.sample_prompts", prompts, "a tuple of strings")
        pair = isinstance(traced, tuple) and [type(step) for step in traced] == [int, int]
        if traced is not None and not (pair and 1 <= traced[0] <= traced[1]):
            checks.refuse("train.profile_steps", traced, "two integers, 1 <= first <= last")


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """One experiment: a model, its data and objective, its optimizer, its devices and its run."""

    model: ModelConfig
    data: DataConfig
    objective: Objective = field(default_factory=NextToken)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if not isinstance(self.objective, Objective):
            checks.refuse("objective", self.objective, "an Objective")
        batch, parts = self.data.batch_size, self.train.accumulate
        if batch % parts:
            checks.refuse("train.accumulate", parts, f"a divisor of data.batch-size, {batch}")
        for name, allowed in self.model.only_for_inference():
            checks.refuse(f"model.{name}", getattr(self.model, name), allowed)
        trained, length = self.model.trained_length, self.data.sequence_length
        if trained not in (None, length) and self.train.init_from is None:
            checks.refuse(
                "model.trained_length",
                trained,
                f"None or data.sequence-length, {length}: training sets it",
            )


def resolved(config: ExperimentConfig) -> ExperimentConfig:
    """The config as a run uses and records it.

    The length trained at becomes part of the model, a decaying schedule gets its end, and "~" in
    the run's folders is the home folder.
    """
    sections: dict[str, dict[str, Any]] = {"model": {"trained_length": config.data.sequence_length}}
    sections["train"] = {
        name: str(expanded_path(path, f"train.{name.replace('_', '-')}"))
        for name in ("output_dir", "init_from")
        if (path := getattr(config.train, name)) is not None
    }
    if config.optim.schedule != "constant" and config.optim.decay_steps is None:
        # A run shorter than its warm-up still is a run: it ends on the way up.
        sections["optim"] = {"decay_steps": max(config.train.steps, config.optim.warmup_steps)}
    return override(config, **sections)


def override(config: ExperimentConfig, **sections: dict[str, Any]) -> ExperimentConfig:
    """A copy with fields of some sections replaced: override(config, train=dict(steps=5))."""
    changed = {
        name: dataclasses.replace(getattr(config, name), **fields)
        for name, fields in sections.items()
    }
    return dataclasses.replace(config, **changed)


def transformer_recipe(learning_rate: float, **fields: Any) -> OptimConfig:
    """The paper's recipe for its Transformer baseline: decay 0.1, clipping at 1.0."""
    recipe = {"weight_decay": 0.1, "clip_norm": 1.0, **fields}
    return OptimConfig(learning_rate=learning_rate, **recipe)
