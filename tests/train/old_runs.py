"""Run folders as earlier versions wrote them, and other changes to finished checkpoints."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from multiscreen_jax.train import manifest, reading, run_tokenizer

LATER = ("tokenizer", "working_directory", "valid_fingerprint", "inherited")


def change_run_facts(folder: Path, change: Callable[[dict], object]) -> None:
    """Changes the run facts of one checkpoint and seals it again."""
    path, facts = folder / "run" / "metadata", manifest.read(folder)
    run = json.loads(path.read_text())
    change(run)
    path.write_text(json.dumps(run))
    (folder / manifest.NAME).unlink()
    manifest.write(folder, facts)


def make_old(output: Path) -> Path:
    """A run's folder without a copy of its tokenizer, whose checkpoints do not know it."""
    shutil.rmtree(output / run_tokenizer.FOLDER)
    for step in reading.steps_in(output / reading.FOLDER):
        folder = output / reading.FOLDER / str(step)
        change_run_facts(folder, lambda run: [run.pop(name) for name in LATER])
    return output
