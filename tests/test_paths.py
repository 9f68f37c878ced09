"""Addresses of object stores are refused wherever something is written; nothing is made of them."""

from pathlib import Path

import pytest

from experiments.evaluate import run as evaluate
from experiments.evaluate_config import EvaluateConfig
from experiments.paper import __main__ as paper
from experiments.prepare_data import PrepareConfig
from experiments.prepare_shards import ShardsConfig
from multiscreen_jax import convert
from multiscreen_jax.inspect.explorer import Explorer
from multiscreen_jax.inspect.pictures import save_pictures
from multiscreen_jax.models import MultiscreenConfig
from multiscreen_jax.paths import require_local

ADDRESS = "gs://bucket/x"
WRITERS = {
    "prepare_data": lambda path: PrepareConfig(("sotu",), Path(path)),
    "prepare_shards": lambda path: ShardsConfig(("sotu",), Path(path), shards=1),
    "paper run": lambda path: paper.run(paper.Run(folder=Path(path))),
    "paper report": lambda path: paper.report(paper.Report(output=Path(path))),
    "export": lambda path: convert.save_safetensors(
        path, {}, MultiscreenConfig.from_psi(8, vocab_size=256)
    ),
    "evaluate": lambda path: evaluate(EvaluateConfig("run", "perplexity", output=path)),
    "explorer": lambda path: Explorer("").save(path),
    "pictures": lambda path: save_pictures(None, None, None, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_an_address_is_refused_and_no_folder_is_made(writer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"is 'gs:/.*; allowed: a path on a mount") as refused:
        WRITERS[writer](ADDRESS)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["https://x/y", "s3:/x", "a\0b", "hdfs://host:9000/x"])
def test_other_addresses_and_impossible_paths_are_refused(given):
    with pytest.raises(ValueError, match=r"^--output is "):
        require_local("--output", given)


@pytest.mark.parametrize("given", ["", "runs/a:b", "/mnt/runs", "./gs://x", Path("C:/x"), "~/x:/y"])
def test_paths_are_taken(given):
    require_local("--output", given)
