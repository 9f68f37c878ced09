"""A run that takes seconds: the config `tiny` on a text of a few thousand words."""

import json
import random
from pathlib import Path

from multiscreen_jax.train import ExperimentConfig
from multiscreen_jax.train.command_line import parse

STEPS = 12


def write_text(path: Path) -> Path:
    """A made-up text of 24 documents, the same at every call."""
    chooser = random.Random(0)
    words = ["the", "key", "tile", "window", "width", "screen", "reads", "writes", "near", "far"]
    documents = [" ".join(chooser.choices(words, k=150)) for _ in range(24)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in documents) + "\n")
    return path


def arguments(text: Path, output: Path, *more: str, name: str = "tiny") -> list[str]:
    """The command line of the run: 12 steps, a checkpoint every 4, every step logged."""
    return [
        str(name),
        *("--data.source", str(text)),
        *("--data.sequence-length", "16"),
        *("--data.prefetch", "2"),
        *("--optim.warmup-steps", "4"),
        *("--train.output-dir", str(output)),
        *("--train.steps", str(STEPS)),
        *("--train.checkpoint-every", "4"),
        *("--train.log-every", "1"),
        *("--train.tensorboard", "False"),
        *more,
    ]


def config(text: Path, output: Path, *more: str) -> ExperimentConfig:
    return parse("experiments.configs", "train", arguments(text, output, *more))


def records(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def loss_bits(output: Path) -> list[tuple[int, str]]:
    return [(record["step"], record["loss_hex"]) for record in records(output)]
