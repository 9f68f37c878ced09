"""What a study's commands would leave behind, invented: files with the right shape."""

import importlib
import itertools
import json
import shlex
from pathlib import Path

from experiments.bench.linear_ops import PARENTS
from experiments.paper.execute import commands
from multiscreen_jax.train import config_json, override


def leave_files(run, folder):
    """Files of every command of a run, and of those it needs."""
    for _, command in commands(run, folder):
        program, *words = shlex.split(command)
        named = words[0]
        options, values = {}, []
        for word in words:
            if word.startswith("--"):
                options[word] = values = []
            else:  # of the option before it
                values.append(word)
        WRITERS[program](named, options)


def train(config, options):
    folder = Path(options["--train.output-dir"][0])
    folder.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(f"experiments.configs.{config}")
    settings = module.config()
    steps = int(options.get("--train.steps", [settings.train.steps])[0])
    config_json.save(override(settings, train={"steps": steps}), folder / "config.json")
    lines = [
        {
            "step": steps * n // 16,
            "loss": 9.0 - n / 3,
            "gradient_norm": 1.0,
            "validation_loss": 5.0,
            "validation_accuracy": n / 16,
        }
        for n in range(1, 17)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))


def evaluate(_, options):
    task = options["--task"][0]
    rows = ROWS[task](task, options)
    rule = {
        "infinite_windows": "--infinite-windows" in options,
        "rope_factor": float(options.get("--rope-factor", ["0"])[0]) or None,
    }
    write(Path(options["--output"][0]) / f"{task}.json", {**rule, "rows": rows})


def grid(task, options):
    lengths = map(int, options[f"--{task}.lengths"])
    keys = int(options.get("--needle.keys", ["1"])[0])
    return [
        {"length": n, "depth": depth, "trials": 10, "exact_match": 1 - depth / n, "keys": keys}
        for n, depth in itertools.product(lengths, (0.1, 0.9))
    ]


def positions(task, options):
    edges = list(map(int, options["--positions.edges"]))
    rule = float(options.get("--rope-factor", ["1"])[0])
    cell = {"tokens": 10, "loss": 2.0}
    return [
        {"start": start, "end": end, **cell, "perplexity": 7.0 + rule + 1 / end}
        for start, end in itertools.pairwise(edges)
    ]


def mqar(task, options):
    return [{"length": 256, "pairs": pairs, "accuracy": 0.5} for pairs in (4, 64)]


def tiles(task, options):
    counts = {"pairs_in_window": 100, "pairs_accepted": 3, "share_silent": 0.5}
    return [
        {"layer": layer, "head": head, "window": 5000.0, "width": 0.5, **counts}
        for layer, head in itertools.product(range(8), range(8))
    ]


def long_context(_, options):
    numbers = ("parameters", "length", "forward_seconds", "prefill_seconds", "decode_ms")
    found = dict.fromkeys((*numbers, "peak_mb", "cache_mb"), 3)
    write(Path(options["--output"][0]), found)


def linear_family(_, options):
    path, (op,) = Path(options["--output"][0]), options["--ops"]
    rows = itertools.product(("ours", PARENTS[op]), options["--ours-lengths"])
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{contender},forward,{length},2.5,3" for contender, length in rows]
    path.write_text("\n".join(["# facts", "contender,pass,T,cpu min,wall min", *lines]))


def write(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))


ROWS = {
    "abcdigits": grid,
    "needle": grid,
    "positions": positions,
    "mqar": mqar,
    "relevance": tiles,
}
WRITERS = {
    "experiments.train": train,
    "experiments.evaluate": evaluate,
    "experiments.bench.long_context": long_context,
    "experiments.bench.linear_family": linear_family,
}
