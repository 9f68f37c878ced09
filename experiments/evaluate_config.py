"""The settings of `experiments.evaluate`, one dataclass for the options of a task."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from multiscreen_jax.evaluation.retrieval import DEPTHS


def _optional(metavar: str, default: str, kind: Any) -> Any:
    """An option that may be left out; its help says what is done then instead of `None`."""
    hint = tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")
    return Annotated[kind | None, hint]


@dataclass(frozen=True)
class TextConfig:
    """Which text to evaluate on."""

    source: _optional("SOURCE", "validation split of the run", str) = None
    """File, folder or glob, read whole; or sotu or a synthetic source, of which the validation
    split."""


@dataclass(frozen=True)
class PositionsConfig:
    """Task positions."""

    buckets: int = 16
    """Stretches of equal length that a row is divided into."""
    edges: _optional("INT [INT ...]", "of those stretches", tuple[int, ...]) = None
    """Where stretches begin and end, ascending, in place of buckets."""


@dataclass(frozen=True)
class AbcDigitsGrid:
    """Task abcdigits."""

    lengths: tuple[int, ...] = (512, 1024, 2048, 4096)
    """Context lengths."""
    unit: str = "tokens"
    """What lengths count: tokens or lines."""
    depths: tuple[float, ...] = DEPTHS
    """Where the line that is asked for stands, 0 (first) to 1 (last)."""
    trials: int = 100
    """Prompts per cell; the paper takes 1000."""
    digits: int = 6
    """Digits of every number."""


@dataclass(frozen=True)
class NeedleGrid:
    """Task needle, in the text of --data.source."""

    lengths: tuple[int, ...] = (512, 1024, 2048, 4096)
    """Context lengths: tokens of prompt and answer."""
    depths: tuple[float, ...] = DEPTHS
    """Where the needle that is asked for lies, 0 (first) to 1 (last)."""
    keys: int = 1
    """Needles in the text, of which one is asked for."""
    trials: int = 100
    """Prompts per cell."""
    digits: int = 7
    """Digits of every number."""
    seed: int = 0
    """Of keys, numbers and the places in the text."""


@dataclass(frozen=True)
class RelevanceConfig:
    """Task relevance."""

    text: _optional("TEXT", "beginning of the validation split", str) = None
    """The prompt."""
    tokens: int = 200
    """Tokens of that beginning. The explorer takes thousands; maps of so many need fewer layers."""
    layers: _optional("INT [INT ...]", "all", tuple[int, ...]) = None
    """Which layers' maps, counted from 0; explorer.html has all."""


@dataclass(frozen=True)
class LmEvalConfig:
    """Task lm-eval, tasks of lm-evaluation-harness. --sequence-length says how much the model
    reads at once, --batch-size how many texts."""

    tasks: tuple[str, ...] = ()
    """Names of its tasks, groups or tags, or patterns of them."""
    include_path: _optional("DIR", "none", str) = None
    """Folder with tasks of your own (YAML)."""
    num_fewshot: _optional("INT", "as the task says", int) = None
    """Examples before each question."""
    limit: _optional("INT", "all", int) = None
    """Questions of each task, for a first look."""
    max_new_tokens: _optional("INT", "256, or half of what it reads", int) = None
    """Of tasks that generate and do not say how much."""
    prefix_token: _optional("INT", "the end of a document", int) = None
    """Stands before texts without a context."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of one evaluation."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Output folder of a training run (or one checkpoint's folder in it), or a shipped model."""
    task: str = "perplexity"
    """perplexity: loss and bits per byte. positions: loss by position in the row. abcdigits and
    needle: exact match by length and depth. mqar: accuracy by length and number of pairs.
    relevance: pictures of what every tile accepts, and explorer.html, a page to read the text in:
    point at a token and see which keys each tile accepted of it. lm-eval: tasks of
    lm-evaluation-harness."""
    step: _optional("INT", "newest", int) = None
    """Which checkpoint."""
    code: _optional("FILE.py", "none", str) = None
    """Python file the run was trained from, which is run; its copy is RUN_DIR/code.py."""
    infinite_windows: bool = False
    """Multiscreen's inference rule: windows longer than the training length become infinite."""
    rope_factor: _optional("FLOAT", "as in training", float) = None
    """Transformer: positions are divided by it (position interpolation)."""
    sequence_length: _optional("INT", "as in training", int) = None
    """Tokens per row."""
    batch_size: _optional("INT", "as in training", int) = None
    """Rows, or prompts, at a time."""
    max_batches: _optional("INT", "whole split", int) = None
    """Stop after so many batches."""
    output: _optional("DIR", "RUN_DIR/evaluation, of a shipped model evaluation/NAME", str) = None
    """Folder for the results."""
    data: TextConfig = field(default_factory=TextConfig)
    positions: PositionsConfig = field(default_factory=PositionsConfig)
    abcdigits: AbcDigitsGrid = field(default_factory=AbcDigitsGrid)
    needle: NeedleGrid = field(default_factory=NeedleGrid)
    relevance: RelevanceConfig = field(default_factory=RelevanceConfig)
    lm_eval: LmEvalConfig = field(default_factory=LmEvalConfig)
