"""Evaluate a trained run: a small table here, and JSON, CSV and pictures beside the run.

Examples:

    python -m experiments.evaluate runs/quickstart
    python -m experiments.evaluate multiscreen-speeches
    python -m experiments.evaluate runs/quickstart --task relevance --relevance.text "It is so"
    python -m experiments.evaluate runs/quickstart --task positions --sequence-length 2048
    python -m experiments.evaluate runs/abcdigits --task abcdigits --abcdigits.lengths 512 4096
    python -m experiments.evaluate runs/mqar --task mqar
    python -m experiments.evaluate runs/books --task needle --data.source books.jsonl.xz
    python -m experiments.evaluate runs/books --task lm-eval --lm-eval.tasks lambada_openai
"""

from experiments.interrupt import end_on_interrupt

if __name__ == "__main__":  # before the imports, which take seconds
    end_on_interrupt()

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.evaluate_config import EvaluateConfig
from experiments.harness import run_harness
from multiscreen_jax import evaluation, inspect
from multiscreen_jax.data import DataConfig, Pipeline, Tokenizer, open_pipeline
from multiscreen_jax.data.config import SYNTHETIC
from multiscreen_jax.data.loading import prepared_tokens
from multiscreen_jax.data.needle import Haystack
from multiscreen_jax.data.sources import NAMED
from multiscreen_jax.evaluation import figures
from multiscreen_jax.inspect.tables import text_table, tile_rows
from multiscreen_jax.models import Multiscreen, Transformer, build
from multiscreen_jax.paths import checked_path
from multiscreen_jax.train import checks, one_line_errors, options, run_tokenizer
from multiscreen_jax.train.errors import is_full_disk
from multiscreen_jax.train.trained_run import open_run

PROGRAM = "python -m experiments.evaluate"


@dataclass(frozen=True)
class Loaded:
    """A trained model and what it was trained on."""

    model: Any
    params: Any
    data: DataConfig
    tokenizer: Tokenizer
    facts: dict[str, Any]
    results: Path  # where they go by default


def main() -> None:
    """Parses the command line and runs one task."""
    with one_line_errors():
        config = options.read(
            EvaluateConfig,
            prog=PROGRAM,
            description=__doc__,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        run(config)


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Runs one task; prints a table, writes files, returns what the JSON file holds."""
    if config.task not in TASKS:
        raise ValueError(f"--task is {config.task!r}; allowed: {', '.join(TASKS)}")
    if config.output:
        checked_path(config.output, "--output")
    loaded = load(config)
    folder = Path(config.output) if config.output else loaded.results
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_full_disk(error):
            raise
        given = "--output: " if config.output else ""
        raise ValueError(f"{given}cannot make {folder} ({error.strerror})") from None
    for name in (f"{config.task}.json", *FILES.get(config.task, ())):
        _require_writable(folder / name)
    result = TASKS[config.task](config, loaded, folder)
    record = {**loaded.facts, "task": config.task, **result}
    path = folder / f"{config.task}.json"
    path.write_text(json.dumps(_plain(record), indent=2) + "\n", encoding="utf-8")
    print(f"written to {folder}")
    return record


def load(config: EvaluateConfig) -> Loaded:
    """The checkpoint, its model under the chosen inference rule, and the data to evaluate on."""
    if config.relevance.text is not None:
        checks.text("--relevance.text", config.relevance.text)
    trained = open_run(config.run, config.step, config.code)
    print(trained.title)
    model, tokenizer = trained.model, trained.tokenizer
    if config.infinite_windows:
        _require_kind("--infinite-windows", Multiscreen, model, config.run)
        model = build(dataclasses.replace(model.config, infinite_windows=True))
    if config.rope_factor is not None:
        _require_kind("--rope-factor", Transformer, model, config.run)
        model = build(dataclasses.replace(model.config, rope_factor=config.rope_factor))
    data = _data_config(config, trained.readable(), tokenizer)
    facts = {
        "run": str(config.run),
        "step": trained.step,
        "model": type(model).__name__,
        "infinite_windows": config.infinite_windows,
        "rope_factor": getattr(model.config, "rope_factor", None),
    }
    # A shipped model lies among the library's files, where nothing is to be written.
    results = Path("evaluation") / config.run
    if trained.folder is not None:
        results = trained.folder / "evaluation"
    return Loaded(model, trained.params, data, tokenizer, facts, results)


def perplexity(config: EvaluateConfig, loaded: Loaded, folder: Path) -> dict[str, Any]:
    """Loss, accuracy and bits per byte, beside what token frequencies alone give."""
    pipeline = _open(loaded)
    found = evaluation.evaluate(loaded.model, loaded.params, pipeline, config.max_batches)
    if found["bytes"]:
        found["unigram_bits_per_byte"] = pipeline.unigram_bits_per_byte()
        if pipeline.lost_share:  # of the bytes, as the tokenizer does not know them
            found["lost_share"] = pipeline.lost_share
    else:  # tokens that are no text
        del found["bytes"], found["bits_per_byte"]
    print(text_table(("", "value"), [(name, _number(value)) for name, value in found.items()]))
    return {**_data_facts(loaded), **found}


def positions(config: EvaluateConfig, loaded: Loaded, folder: Path) -> dict[str, Any]:
    """Loss by position in the row: positions.csv, positions.png."""
    buckets = config.positions.edges or config.positions.buckets
    rows = evaluation.loss_by_position(
        loaded.model, loaded.params, _open(loaded), buckets, config.max_batches
    )
    _print_rows(rows)
    evaluation.write_csv(rows, folder / "positions.csv")
    figure = figures.plot_positions(rows, loaded.model.config.trained_length)
    figure.savefig(folder / "positions.png", dpi=150)
    return {**_data_facts(loaded), "rows": rows}


def abcdigits(config: EvaluateConfig, loaded: Loaded, folder: Path) -> dict[str, Any]:
    """Exact match on ABCDigits: abcdigits.csv, abcdigits.png."""
    grid = config.abcdigits
    rows = evaluation.retrieval_grid(
        loaded.model,
        loaded.params,
        loaded.tokenizer,
        grid.lengths,
        grid.depths,
        unit=grid.unit,
        trials=grid.trials,
        digits=grid.digits,
        batch_size=loaded.data.batch_size,
        progress=_print_cell,
    )
    return _save_grid(rows, folder / "abcdigits")


def needle(config: EvaluateConfig, loaded: Loaded, folder: Path) -> dict[str, Any]:
    """Exact match on magic numbers hidden in books: needle.csv, needle.png."""
    grid, data = config.needle, loaded.data
    source = data.valid_source or data.source
    if source in SYNTHETIC or source.endswith(".bin"):
        raise ValueError(
            f"--task needle needs text to hide numbers in, the run's data is {source}; give "
            "--data.source"
        )
    rows = evaluation.needle_grid(
        loaded.model,
        loaded.params,
        loaded.tokenizer,
        Haystack.read(source, "valid", data.text_field),
        grid.lengths,
        grid.depths,
        keys=grid.keys,
        trials=grid.trials,
        digits=grid.digits,
        seed=grid.seed,
        batch_size=data.batch_size,
        progress=_print_cell,
    )
    return {"source": source, **_save_grid(rows, folder / "needle")}


def mqar(config: EvaluateConfig, loaded: Loaded, folder: Path) -> dict[str, Any]:
    """Accuracy on associative recall by length and number of pairs: mqar.csv."""
    if loaded.data.source != "mqar":
        raise ValueError(
            f"--task mqar needs a run on mqar, {config.run} is on {loaded.data.source}"
        )
    found = evaluation.mqar_accuracy(loaded.model, loaded.params, loaded.data, config.max_batches)
    _print_rows(found["rows"])
    for name in ("accuracy", "example_accuracy", "loss"):
        print(f"{name.replace('_', ' ')} of all: {found[name]:.4f}")
    evaluation.write_csv(found["rows"], folder / "mqar.csv")
    return found


def relevance(config: EvaluateConfig, loaded: Loaded, folder: Path) -> dict[str, Any]:
    """What every tile accepts: relevance.png, windows.png, tiles.csv, explorer.html."""
    model, params, chosen = loaded.model, loaded.params, config.relevance
    _require_kind("--task relevance", Multiscreen, model, config.run)
    if chosen.text is None:
        tokens = _first_tokens(loaded, chosen.tokens)
    elif chosen.text == "":
        raise ValueError("--relevance.text is empty; allowed: at least one character")
    else:
        tokens = loaded.tokenizer.encode(chosen.text)
    texts = loaded.tokenizer.token_texts(tokens)
    name = Path(config.run).absolute().name
    title = f"{name}, step {loaded.facts['step']}"
    # First, since maps that are too large are refused, and then nothing is replaced.
    inspect.save_pictures(model, params, tokens, folder, texts, chosen.layers, title)
    inspect.explore(model, params, tokens, texts, title=title).save(folder / "explorer.html")
    counts = inspect.acceptance(model, params, tokens)
    print(inspect.tile_table(counts))
    rows = tile_rows(counts)
    evaluation.write_csv(rows, folder / "tiles.csv")
    return {"tokens": len(tokens), "rows": rows}


def lm_eval(config: EvaluateConfig, loaded: Loaded, folder: Path) -> dict[str, Any]:
    """Tasks of lm-evaluation-harness: its table, and its numbers."""
    adaptor = evaluation.lm_eval.Adaptor(
        loaded.model,
        loaded.params,
        loaded.tokenizer,
        max_length=config.sequence_length,
        max_new_tokens=config.lm_eval.max_new_tokens,
        batch_size=loaded.data.batch_size,
        prefix_token=config.lm_eval.prefix_token,
    )
    found = run_harness(adaptor, config.lm_eval)
    return {"max_length": adaptor.max_length, **found}


TASKS: dict[str, Callable[[EvaluateConfig, Loaded, Path], dict[str, Any]]] = {
    "perplexity": perplexity,
    "positions": positions,
    "abcdigits": abcdigits,
    "needle": needle,
    "mqar": mqar,
    "relevance": relevance,
    "lm-eval": lm_eval,
}
FILES = {  # besides TASK.json
    "positions": ("positions.csv", "positions.png"),
    "abcdigits": ("abcdigits.csv", "abcdigits.png"),
    "needle": ("needle.csv", "needle.png"),
    "mqar": ("mqar.csv",),
    "relevance": ("relevance.png", "windows.png", "explorer.html", "tiles.csv"),
}


def _require_writable(path: Path) -> None:
    """OSError that names the file where it cannot be written, before anything is computed."""
    if path.exists():
        path.open("ab").close()
    else:
        tempfile.TemporaryFile(dir=path.parent).close()


def _require_kind(option: str, kind: type, model: Any, run: str) -> None:
    if not isinstance(model, kind):
        raise ValueError(f"{option} needs a {kind.__name__} run, {run} is a {type(model).__name__}")


def _data_config(config: EvaluateConfig, data: DataConfig, tokenizer: Tokenizer) -> DataConfig:
    changes: dict[str, Any] = {}
    if config.sequence_length is not None:
        changes["sequence_length"] = config.sequence_length
    if config.batch_size is not None:
        changes["batch_size"] = config.batch_size
    source = config.data.source
    if source is not None:
        synthetic = source in SYNTHETIC
        changes |= {
            "source": source,
            # A file given for validation is read whole; the others have a split of their own.
            "valid_source": None if source in NAMED else source,
            "tokenizer": tokenizer.name,
            "alphabet": None if synthetic else tokenizer.settings.get("alphabet"),
            "eos_token": tokenizer.settings.get("eos_token"),
            "packing": "stream" if synthetic else data.packing,
        }
    return dataclasses.replace(data, **changes)


def _open(loaded: Loaded, **changes: Any) -> Pipeline:
    """The validation split, whose prepared tokens must be those of the run's tokenizer."""
    pipeline = open_pipeline(dataclasses.replace(loaded.data, **changes), "valid")
    run_tokenizer.refuse_other(
        run_tokenizer.facts_of(loaded.tokenizer),
        run_tokenizer.facts_of(pipeline.tokenizer),
        f"{loaded.facts['run']} was trained with tokenizer",
        _uses(loaded.data),
    )
    return pipeline


def _uses(data: DataConfig) -> str:
    """How a message begins that names the tokenizer of the data read."""
    source = data.valid_source or data.source
    if source in SYNTHETIC:
        return f"{source} is made with"
    if prepared_tokens(source, "valid") is not None:
        return f"{source} holds tokens of"
    return f"the documents of {source} need one that ends them,"


def _first_tokens(loaded: Loaded, count: int) -> np.ndarray:
    if count < 1:
        raise ValueError(f"--relevance.tokens is {count}; allowed: an integer >= 1")
    pipeline = _open(loaded, sequence_length=count, batch_size=1, packing="stream")
    return pipeline.batch(0)["tokens"][0, :count]


def _data_facts(loaded: Loaded) -> dict[str, Any]:
    data = loaded.data
    source = data.valid_source or data.source
    return {"source": source, "sequence_length": data.sequence_length, "packing": data.packing}


def _print_cell(row: dict[str, Any]) -> None:
    print(f"{row['length']} {row['unit']}, depth {row['depth']:g}: {row['exact_match']:.1%}")


def _save_grid(rows: list[dict[str, Any]], path: Path) -> dict[str, Any]:
    """Prints a grid of exact matches and writes PATH.csv and PATH.png."""
    _print_rows(rows)
    evaluation.write_csv(rows, path.with_suffix(".csv"))
    figures.plot_retrieval(rows).savefig(path.with_suffix(".png"), dpi=150)
    return {"rows": rows}


def _print_rows(rows: list[dict[str, Any]]) -> None:
    cells = [tuple(_number(value) for value in row.values()) for row in rows]
    print(text_table(tuple(rows[0]), cells))


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 1e5 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers that are not finite become their names."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


if __name__ == "__main__":
    main()
