"""Finished runs side by side."""

import json

import pytest

from experiments.bench import report, runs
from experiments.configs import mqar_small, quickstart, quickstart_gdn
from multiscreen_jax.train import config_json, override


def finished(folder, config, **last):
    folder.mkdir()
    config_json.save(config, folder / "config.json")
    metrics = {"step": config.train.steps, "validation_loss": 1.0, "validation_accuracy": 0.5}
    metrics |= {"validation_bits_per_byte": 1.4, **last}
    (folder / "metrics.jsonl").write_text(f"{json.dumps({'step': 10})}\n{json.dumps(metrics)}\n")
    return folder


def at(config, rate, seed=0):
    return override(config, optim={"learning_rate": rate}, train={"seed": seed})


def test_best_rate_of_each_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    gdn, ours = quickstart_gdn.config(), quickstart.config()
    found = [
        finished(tmp_path / "a", at(gdn, 1e-3), validation_loss=1.0, validation_bits_per_byte=1.44),
        finished(tmp_path / "b", at(gdn, 2e-3), validation_loss=0.9, validation_bits_per_byte=1.3),
        # One lucky seed does not make a rate the best one.
        finished(tmp_path / "c", at(gdn, 4e-3), validation_loss=0.5, validation_bits_per_byte=0.7),
        finished(tmp_path / "d", at(gdn, 4e-3, 1), validation_loss=2.0),
        finished(tmp_path / "e", ours),
    ]
    runs.main(tuple(found), "table")
    said = capsys.readouterr().out
    assert "GatedDeltaNet: bits per byte 1.3000 at 0.002 (tried: 0.001, 0.002, 0.004)" in said
    assert "Multiscreen: bits per byte 1.4000 at 0.03125 (tried: 0.03125)" in said
    table = (tmp_path / "table.csv").read_text()
    tokens = 600 * 16 * 256
    assert f"GatedDeltaNet,466120,{tokens},0.002,0,0.9000,1.3000,0.5000" in table


def test_settings_of_mqar(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    run = finished(tmp_path / "a", mqar_small.config())
    (run / "evaluation").mkdir()
    part = {"length": 32, "pairs": 4, "accuracy": 0.75}
    (run / "evaluation" / "mqar.json").write_text(json.dumps({"rows": [part]}))
    runs.main((run,), "table")
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[-2].endswith("loss,accuracy,32:4")
    assert lines[-1].endswith("1.0000,0.5000,0.7500")


def test_only_equal_work_is_compared(tmp_path):
    config = quickstart.config()
    first = finished(tmp_path / "a", config)
    for name, changes in {
        "batch": {"data": {"batch_size": 8}}, "steps": {"train": {"steps": 500}}
    }.items():  # fmt: skip
        other = finished(tmp_path / name, override(config, **changes))
        with pytest.raises(ValueError, match="differ in data, batches or steps"):
            runs.main((first, other), "table")
    (first / "metrics.jsonl").write_text('{"step": 590}\n')
    with pytest.raises(ValueError, match="has not finished its 600 steps"):
        runs.main((first,), "table")
