"""Every notebook is in step with its source and runs, here, on a CPU."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("jupytext")

from experiments.notebooks import pairs
from tests.programs import OPTIMIZED

pytestmark = pytest.mark.slow
NEEDS = {"04_pytorch_weights": ("torch", "multiscreen")}
# Training that only has to run; `exhaustive` runs all of it.
SHORTER = {
    "01_tour": {"range(60)": "range(8)", "max_batches=4": "max_batches=2"},
    "03_swap_the_mixer": {
        "STEPS, WARMUP, LENGTH, ROWS = 180,": "STEPS, WARMUP, LENGTH, ROWS = 20,"
    },
    "05_your_own_mixer": {"STEPS = 150": "STEPS = 25"},
}


@pytest.fixture(params=pairs.sources(), ids=lambda source: source.stem)
def source(request):
    return request.param


def outputs(notebook):
    return [out for cell in notebook.cells for out in cell.get("outputs", ())]


def test_there_are_five():
    assert len(pairs.sources()) == 5


def test_a_pair_is_in_step(source):
    """Otherwise: python -m experiments.notebooks"""
    notebook = pairs.read(source.with_suffix(".ipynb"))
    assert pairs.cells(pairs.read(source)) == pairs.cells(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert outputs(notebook)


def test_outputs_are_small_and_name_no_machine():
    texts = [source.with_suffix(".ipynb").read_text() for source in pairs.sources()]
    assert sum(map(len, texts)) < 1.5e6
    for text in texts:
        for path in ("/home/", "/tmp/", "site-packages", sys.prefix, str(Path.cwd())):
            assert path not in text


def test_a_notebook_runs(source, monkeypatch):
    check_run(source, SHORTER.get(source.stem), monkeypatch)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SHORTER)
def test_a_notebook_runs_in_full(name, monkeypatch):
    check_run(pairs.FOLDER / f"{name}.py", None, monkeypatch)


def check_run(source, instead, monkeypatch):
    for package in NEEDS.get(source.stem, ()):
        pytest.importorskip(package)
    if instead is None:  # the suite's own setting would make training several times slower
        for name, value in OPTIMIZED.items():
            monkeypatch.setenv(name, value)
    notebook, took = pairs.execute(source, instead)
    print(f"{source.stem}: {took.seconds:.0f} s, processor {took.processor:.0f} s")
    assert all(out.output_type != "error" for out in outputs(notebook))
    assert not [out.text for out in outputs(notebook) if out.get("name") == "stderr"]
