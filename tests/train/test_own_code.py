"""A file of one's own trains, resumes, generates, exports and divides as our models do."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import evaluate, export, generate
from multiscreen_jax import convert
from multiscreen_jax.train import own_code, train
from multiscreen_jax.train.command_line import parse
from multiscreen_jax.train.trained_run import open_run
from tests.programs import EIGHT_DEVICES, run_module
from tests.train import small
from tests.train.test_resume import interrupt

NAMED = "experiments.configs"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The file, outside of every package."""
    folder = tmp_path_factory.mktemp("elsewhere")
    return shutil.copy(Path(__file__).with_name("own_model.py"), folder / "my_model.py")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return small.write_text(tmp_path_factory.mktemp("text") / "text.jsonl")


@pytest.fixture(scope="module")
def whole(file, text, tmp_path_factory):
    """(output, result) of the run that nothing interrupts."""
    output = tmp_path_factory.mktemp("whole")
    config = parse(
        NAMED, "train", small.arguments(text, output, "--train.accumulate", "2", name=file)
    )
    return output, train(config)


def test_it_learns_and_says_what_it_sows(whole):
    records = small.records(whole[0])
    assert records[-1]["loss"] < records[0]["loss"] - 0.5
    for record in records:
        assert record["losses/fading"] > 0
        assert 1 < record["metrics/fading"] < 3
    saved = json.loads((whole[0] / "config.json").read_text())
    assert saved["objective"] == {"class": "Steadied", "share": 0.25}
    assert saved["model"]["pattern"][0]["mixer"]["class"] == "FadingSpec"


@pytest.mark.slow
def test_killed_and_resumed_it_is_the_same_run(file, text, whole, tmp_path):
    more = ("--train.accumulate", "2")
    killed = interrupt("step", 6, text, tmp_path, *more, name=file)
    assert killed.returncode == -signal.SIGKILL
    assert small.loss_bits(tmp_path)[-1][0] == 6
    result = train(parse(NAMED, "train", small.arguments(text, tmp_path, *more, name=file)))
    assert small.loss_bits(tmp_path) == small.loss_bits(whole[0])
    for got, wanted in zip(
        jax.tree.leaves(result.params), jax.tree.leaves(whole[1].params), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.slow
def test_its_run_is_opened_by_who_names_the_code(whole, tmp_path, capsys, monkeypatch):
    output = whole[0]
    copy = output / own_code.COPY
    assert copy.read_bytes() == Path(__file__).with_name("own_model.py").read_bytes()
    run = open_run(output, code=copy)
    assert type(run.model.config.pattern[0].mixer).__name__ == "FadingSpec"
    shown = {"run": str(output), "code": str(copy)}
    generate.run(generate.GenerateConfig(**shown, prompt="the key", max_new_tokens=5))
    assert capsys.readouterr().out.startswith("the key")
    found = evaluate.run(evaluate.EvaluateConfig(**shown, max_batches=1, output=str(tmp_path)))
    assert 0 < found["loss"] < 6
    file = tmp_path / "weights.safetensors"
    monkeypatch.setattr("sys.argv", ["export", str(output), str(file), "--code", str(copy)])
    export.main()
    params, config = convert.load_safetensors(file)
    assert config == run.model.config
    for got, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(run.params), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_nobody_runs_the_code_of_a_run_unasked(whole):
    ended = run_module(
        "tests.train.opening", str(whole[0]), variables={"JAX_PLATFORMS": "cpu"}
    ).stdout
    assert "class is 'FadingSpec'; allowed: " in ended or "class is 'Steadied'; allowed: " in ended
    assert f"it was trained from {whole[0] / own_code.COPY}: read it, then give it as" in ended


@pytest.mark.slow
def test_it_is_divided_over_eight_devices(file, text, whole, tmp_path):
    mesh = ("--mesh.data", "1", "--mesh.fsdp", "2", "--mesh.seq", "2", "--mesh.model", "2")
    arguments = small.arguments(text, tmp_path, "--train.accumulate", "2", *mesh, name=file)
    run_module("experiments.train", *arguments, variables=EIGHT_DEVICES)
    losses = [
        np.array([record["loss"] for record in small.records(output)])
        for output in (tmp_path, whole[0])
    ]
    np.testing.assert_allclose(*losses, rtol=5e-5)


@pytest.mark.slow
def test_what_is_random_depends_on_the_seed_and_the_step(file, text, whole, tmp_path):
    seeds = [], []
    for seed, found in zip(("0", "1"), seeds, strict=True):
        output = tmp_path / seed
        more = ("--train.steps", "2", "--train.seed", seed, "--train.init-from", str(whole[0]))
        train(parse(NAMED, "train", small.arguments(text, output, *more, name=file)))
        found += small.loss_bits(output)
    assert seeds[0][0] != seeds[1][0]  # the same parameters and batch


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no function config(); allowed: a file that defines one"),
        ("config = lambda: 3", "gives int; allowed: an ExperimentConfig"),
        ("import nothing_of_this_name", "cannot be run: ModuleNotFoundError: No module named"),
        ("def config(:", "cannot be run: SyntaxError"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_is_no_experiment(tmp_path, text, message):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")) as error:
        parse(NAMED, "train", [str(file)])
    assert "\n" not in str(error.value)
    assert "mine.py" in str(error.value)


def test_a_registered_model_on_the_data_of_a_config():
    config = parse(NAMED, "train", ["tiny", "--model", "resformer-tiny", "--model.num-layers", "2"])
    base = parse(NAMED, "train", ["tiny"])
    assert type(config.model).__name__ == "ResFormerConfig"
    assert config.model.num_layers == 2
    assert config.model.vocab_size == base.model.vocab_size
    assert dataclasses.replace(config, model=base.model) == base
    with pytest.raises(ValueError, match="unknown model preset 'nosuch'"):
        parse(NAMED, "train", ["tiny", "--model=nosuch"])
    with pytest.raises(ValueError, match="--model needs a name"):
        parse(NAMED, "train", ["tiny", "--model"])
