"""Bad settings are one line that names them; configs survive JSON; what may change on resume."""

import dataclasses
import json
import subprocess
import sys

import jax.numpy as jnp
import pytest

from multiscreen_jax.data import DataConfig
from multiscreen_jax.data.config import import_package
from multiscreen_jax.models import MultiscreenConfig
from multiscreen_jax.models.registry import config_for
from multiscreen_jax.train import (
    ExperimentConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
    config_json,
    override,
    places,
    train,
    transformer_recipe,
)
from multiscreen_jax.train.command_line import config_names, named_config, parse
from multiscreen_jax.train.config import resolved
from multiscreen_jax.train.errors import is_ours, one_line_errors

CONFIGS = "experiments.configs"


def tiny(*options):
    return parse(CONFIGS, "train", ["tiny", *options])


BAD = {
    "--optim.name sgd": "optim.name is 'sgd'; allowed: adamw",
    "--optim.learning-rate -1": "optim.learning-rate is -1.0; allowed: a finite number > 0",
    "--optim.learning-rate nan": "optim.learning-rate is nan; allowed: a finite number > 0",
    "--optim.warmup-steps -2": "optim.warmup-steps is -2; allowed: an integer >= 0",
    "--optim.schedule step": "optim.schedule is 'step'; allowed: constant, cosine, linear",
    "--optim.decay-steps 3": "optim.decay-steps is 3; allowed: an integer >= 10",
    "--optim.end-fraction 1.5": "optim.end-fraction is 1.5; allowed: a number >= 0 and <= 1",
    "--optim.b2 1.0": "optim.b2 is 1.0; allowed: a number >= 0 and < 1",
    "--optim.eps 0": "optim.eps is 0.0; allowed: a finite number > 0",
    "--optim.weight-decay -0.1": "optim.weight-decay is -0.1; allowed: a finite number >= 0",
    "--optim.clip-norm 0": "optim.clip-norm is 0.0; allowed: a finite number > 0",
    "--mesh.model 0": "mesh.model is 0; allowed: an integer >= 1 or -1",
    "--mesh.seq 0": "mesh.seq is 0; allowed: an integer >= 1 or -1",
    "--mesh.fsdp -1": "at most one axis of size -1",
    "--train.steps 0": "train.steps is 0; allowed: an integer >= 1",
    "--train.output-dir ": "train.output-dir is ''; allowed: the path of a file or folder",
    "--train.output-dir gs://b/x": "train.output-dir is 'gs://b/x'; allowed: a path on a mount",
    "--train.init-from s3://b/x": "train.init-from is 's3://b/x'; allowed: a path on a mount",
    "--data.source hf://datasets/x": "source is 'hf://datasets/x'; allowed: a path on a mount",
    "--data.valid-source gs://b": "valid_source is 'gs://b'; allowed: a path on a mount",
    "--data.tokenizer gs://b/t.json": "tokenizer is 'gs://b/t.json'; allowed: a path on a mount",
    "--train.seed 4294967296": "train.seed is 4294967296; allowed: an integer >= 0 and <= 429496",
    "--train.checkpoint-every -1": "train.checkpoint-every is -1; allowed: an integer >= 0",
    "--train.keep-last 0": "train.keep-last is 0; allowed: an integer >= 1",
    "--train.on-nonfinite ignore": "train.on-nonfinite is 'ignore'; allowed: stop, skip, continue",
    "--train.profile-steps 5 3": "train.profile-steps is (5, 3); allowed: two integers, 1 <= first",
    "--train.keep-best 1": "train.keep-best is 1; allowed: 0 where train.evaluate-every is 0",
    "--train.accumulate 3": "train.accumulate is 3; allowed: a divisor of data.batch-size, 4",
    "--model.infinite-windows True --model.trained-length 32": "model.infinite-windows is True",
    "--model.trained-length 99": "model.trained-length is 99; allowed: None or",
    "--model.vocab-size 0": "vocab_size must be",
    "--data.sequence-length 0": "sequence_length is 0",
}


@pytest.mark.parametrize("options", BAD)
def test_a_bad_value_is_one_line_that_names_the_field(options):
    with pytest.raises(ValueError, match=r".") as raised:
        tiny(*options.split(" "))
    assert BAD[options] in str(raised.value)
    assert "\n" not in str(raised.value)
    assert is_ours(raised.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sample_prompts": "We"}, "train.sample-prompts is 'We'; allowed: a tuple of strings"),
        ({"sample_prompts": (3,)}, r"train.sample-prompts is \(3,\); allowed: a tuple of strings"),
        ({"profile_steps": 3}, "train.profile-steps is 3; allowed: two integers, 1 <= first"),
        (
            {"profile_steps": (1, 2, 3)},
            r"train.profile-steps is \(1, 2, 3\); allowed: two integers",
        ),
    ],
)
def test_values_of_another_shape_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"param_dtype": "float64"}}, "model.param-dtype is 'float64'; allowed: float64"),
        ({"model": {"dtype": "float64"}}, "model.dtype is 'float64'; allowed: float64 with JAX_E"),
        ({"model": {"vocab_size": 100}}, "model.vocab-size is 100; allowed: at least 256"),
        ({"mesh": {"data": 3}}, "mesh.data 3, mesh.fsdp 1, mesh.seq 1, mesh.model 1"),
        ({"mesh": {"model": 2}}, "the product must be the number of devices, 1"),
        ({"train": {"output_dir": "/proc/nowhere"}}, "a folder that can be written"),
        ({"train": {"output_dir": "a\0b"}}, "a path without the NUL character"),
        ({"train": {"output_dir": "\ud800"}}, "characters that a file name has"),
        ({"train": {"wandb_project": "p"}}, "the package wandb is not installed"),
        ({"train": {"sample_prompts": ("the", "")}}, "train.sample-prompts has ''; allowed:"),
        ({"train": {"sample_prompts": ("\ud800",)}}, "train.sample-prompts has '\\ud800': 'utf-8'"),
        ({"train": {"init_from": "/nowhere"}}, "no checkpoint in /nowhere"),
        ({"data": {"source": "/nowhere.txt"}}, "nowhere"),
    ],
)
def test_a_run_that_cannot_start_says_why_in_one_line(changes, message, tmp_path, text):
    config = tiny(
        *("--data.source", str(text), "--data.sequence-length", "16"),
        *("--train.output-dir", str(tmp_path / "run")),
    )
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        train(override(config, **changes))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert is_ours(raised.value)


def test_an_unknown_name_gets_near_matches():
    with pytest.raises(ValueError, match="unknown config 'quickstrat'; did you mean quickstart"):
        named_config(CONFIGS, "quickstrat")


@pytest.mark.parametrize("name", config_names(CONFIGS))
def test_named_configs_are_valid_documented_and_survive_json(name):
    config = named_config(CONFIGS, name)
    module = sys.modules[f"{CONFIGS}.{name}"]
    assert f"python -m experiments.train {name}" in module.__doc__
    config = resolved(config)
    assert config_json.from_dict(json.loads(json.dumps(config_json.to_dict(config)))) == config


def test_json_keeps_the_models_class_and_refuses_what_it_does_not_know(tmp_path):
    config = ExperimentConfig(
        model=config_for("transformer-8m"),
        data=DataConfig(),
        optim=transformer_recipe(1e-3, schedule="cosine"),
        train=TrainConfig(sample_prompts=("a", "b"), profile_steps=(2, 3)),
    )
    config_json.save(config, tmp_path / "config.json")
    assert config_json.from_dict(json.loads((tmp_path / "config.json").read_text())) == config
    values = config_json.to_dict(config)
    assert values["model"]["class"] == "TransformerConfig"
    for change, message in [
        ({"model": {**values["model"], "class": "Mamba"}}, "model.class is 'Mamba'"),
        ({"optim": {**values["optim"], "momentum": 1}}, "optim.momentum is unknown"),
        ({"extra": {}}, "'extra' is unknown"),
        ({"optim": 3}, "optim is 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            config_json.from_dict({**values, **change})


def test_a_decaying_schedule_gets_its_end_and_keeps_it():
    config = resolved(tiny("--optim.schedule", "cosine", "--train.steps", "50"))
    assert config.optim.decay_steps == 50
    assert config.model.trained_length == 32
    longer = resolved(tiny("--optim.schedule", "cosine", "--train.steps", "60"))
    with pytest.raises(ValueError, match=r"50, now 60 \(train.steps .* --optim.decay-steps 50 "):
        config_json.refuse_changes(
            config_json.to_dict(config), config_json.to_dict(longer), "a checkpoint"
        )


def test_harmless_changes_are_allowed_and_others_are_not():
    before = config_json.to_dict(tiny())
    harmless = tiny(
        *("--train.steps", "99", "--train.log-every", "3", "--train.output-dir", "elsewhere"),
        *("--data.prefetch", "9", "--model.remat", "full", "--mesh.data", "1"),
    )
    config_json.refuse_changes(before, config_json.to_dict(harmless), "a checkpoint")
    for option, value in [("--train.seed", "3"), ("--data.seed", "3"), ("--optim.eps", "1e-3")]:
        with pytest.raises(ValueError, match=option[2:]):
            config_json.refuse_changes(before, config_json.to_dict(tiny(option, value)), "it")


def test_options_override_the_named_config_and_nothing_else():
    default, changed = tiny(), tiny("--optim.learning_rate", "1.0", "--model.num-layers", "3")
    assert changed == override(default, optim={"learning_rate": 1.0}, model={"num_layers": 3})
    assert tiny("--train.sample-prompts", "a", "b").train.sample_prompts == ("a", "b")
    assert tiny("--optim.clip-norm", "1.0").optim.clip_norm == 1.0


def test_help_names_configs_and_fields(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(CONFIGS, "python -m experiments.train", ["--help"])
    assert ended.value.code == 0
    assert "quickstart" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tiny("--help")
    text = capsys.readouterr().out
    assert "--optim.learning-rate" in text
    assert "--model.num-layers" in text
    assert "Peak learning rate." in text


def test_an_unknown_option_exits_with_2_and_near_matches(capsys):
    with pytest.raises(SystemExit) as ended:
        tiny("--optim.learning-rat", "1")
    assert ended.value.code == 2
    assert "--optim.learning-rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--optim.learning-rat", "1"],
            "--optim.learning-rat, 1; did you mean --optim.learning-rate?",
        ),
        (["--optim.learning-rate", "abc"], "could not convert string to float: 'abc'"),
        (["--optim.learning-rate"], "Missing value for argument '--optim.learning-rate'"),
        (["--model.implementation", "foo"], "error: implementation must be None or among"),
    ],
)
def test_options_that_cannot_be_read_are_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        tiny(*options)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_our_errors_are_one_line_and_others_keep_their_traceback(capsys):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        tiny("--train.steps", "0")
    assert ended.value.code == 2
    assert capsys.readouterr().err == ("error: train.steps is 0; allowed: an integer >= 1\n")
    with pytest.raises(SystemExit), one_line_errors():
        import_package("not_there", "this test")
    wanted = "error: this test needs the package not_there; run: pip install not_there\n"
    assert capsys.readouterr().err == wanted
    with pytest.raises(TypeError), one_line_errors():
        int([])
    with pytest.raises(ValueError, match="axis"), one_line_errors():
        jnp.sum(jnp.ones(3), axis=7)


@pytest.mark.slow
def test_the_command_prints_one_line_and_no_traceback():
    command = [sys.executable, "-m", "experiments.train"]
    for options, message in [
        (["tinny"], "error: unknown config 'tinny'; did you mean tiny"),
        (["tiny", "--optim.b1", "2"], "error: optim.b1 is 2.0; allowed: a number >= 0 and < 1"),
    ]:
        ended = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert ended.stderr.splitlines()[-1].startswith(message)
        assert "Traceback" not in ended.stderr


def test_sections_are_small_and_frozen():
    for section in (OptimConfig, MeshConfig, TrainConfig, MultiscreenConfig):
        assert len(dataclasses.fields(section)) < 25
        assert section.__dataclass_params__.frozen


def test_the_home_folder_is_the_same_for_writers_and_readers(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = resolved(tiny("--train.output-dir", "~/run", "--train.init-from", "~/base"))
    assert config.train.output_dir == str(tmp_path / "run")
    assert config.train.init_from == str(tmp_path / "base")
    assert places.is_same("~/base", config.train.init_from, "/elsewhere")
    with pytest.raises(ValueError, match=r"^train\.output-dir is '~nobody-here/run': "):
        resolved(tiny("--train.output-dir", "~nobody-here/run"))
