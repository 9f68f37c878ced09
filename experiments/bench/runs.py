"""Finished training runs side by side: parameters, tokens, learning rate, seed and validation.

    python -m experiments.bench.runs runs/quickstart runs/quickstart_gdn --name quickstart

Only runs on the same data, batches and steps are compared; the data's seed may differ. Of runs on
mqar that `experiments.evaluate RUN --task mqar` has seen, every setting has a column.
"""

import dataclasses
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import tyro

from experiments.bench import report
from multiscreen_jax.json_files import read_object
from multiscreen_jax.train import ExperimentConfig, config_json, options


def read(run: Path) -> tuple[ExperimentConfig, dict[str, Any]]:
    """The config of a run, and its row of the table."""
    config = config_json.from_dict(read_object(run / "config.json"))
    lines = (run / "metrics.jsonl").read_text().splitlines() or ['{"step": 0}']
    last, data = read_object(lines[-1], f"{run / 'metrics.jsonl'}: the last line"), config.data
    if last.get("step") != config.train.steps:
        raise ValueError(f"{run} has not finished its {config.train.steps} steps")
    row = {
        "model": type(config.model).__name__.removesuffix("Config"),
        "parameters": config.model.parameter_count(),
        "tokens": config.train.steps * data.batch_size * data.sequence_length,
        "learning rate": config.optim.learning_rate,
        "seed": config.train.seed,
    }
    measures = {"loss": last["validation_loss"]}
    if data.source != "mqar":
        measures["bits per byte"] = last["validation_bits_per_byte"]
    measures["accuracy"] = last["validation_accuracy"]
    settings = run / "evaluation" / "mqar.json"
    if settings.exists():
        for part in read_object(settings, keys={"rows": list})["rows"]:
            measures[f"{part['length']}:{part['pairs']}"] = part["accuracy"]
    return config, row | {name: f"{value:.4f}" for name, value in measures.items()}


def same_work(config: ExperimentConfig) -> Any:
    """What two runs must share to be compared."""
    return dataclasses.replace(config.data, seed=0, prefetch=0), config.train.steps


def best(rows: list[dict[str, Any]]) -> list[str]:
    """Each model at its best learning rate, by the mean loss of its seeds there."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        rates = sorted({row["learning rate"] for row in mine})
        at = {rate: [row for row in mine if row["learning rate"] == rate] for rate in rates}
        rate = min(at, key=lambda rate: mean(float(row["loss"]) for row in at[rate]))
        measure = "bits per byte" if "bits per byte" in mine[0] else "accuracy"
        values = ", ".join(row[measure] for row in at[rate])
        tried = ", ".join(f"{rate:.4g}" for rate in rates)
        lines.append(f"{model}: {measure} {values} at {rate:.4g} (tried: {tried})")
    return lines


def main(runs: Annotated[tuple[Path, ...], tyro.conf.Positional], name: str) -> None:
    """Compare finished runs.

    Args:
        runs: their folders.
        name: of the CSV file in experiments/bench/results.
    """
    configs, rows = zip(*map(read, runs), strict=True)
    for run, config in zip(runs, configs, strict=True):
        if same_work(config) != same_work(configs[0]):
            raise ValueError(f"{run} and {runs[0]} differ in data, batches or steps")
    rows = sorted(rows, key=lambda row: (row["model"], row["learning rate"], row["seed"]))
    report.publish(rows, report.RESULTS / f"{name}.csv", best(rows), report.machine_facts())


if __name__ == "__main__":
    options.call(main, prog="python -m experiments.bench.runs")
