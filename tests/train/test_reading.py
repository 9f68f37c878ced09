"""Checkpoints are read beside a run that removes them; what does not fit is named in one line."""

import gc
import json
import shutil
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from multiscreen_jax.train import load_params, manifest, reading
from multiscreen_jax.train.manifest import DamagedCheckpoint
from multiscreen_jax.train.trained_run import open_run
from tests.train.old_runs import change_run_facts


class LiveRun:
    """A run that has sealed checkpoint 8, and at the next turn seals 12 and removes 8."""

    def __init__(self, output: Path) -> None:
        self.output, self.folder = output, output / "checkpoints"
        (self.folder / "12").rename(output / "later")

    def turn(self) -> None:
        if (self.output / "later").exists():
            (self.output / "later").rename(self.folder / "12")
            shutil.rmtree(self.folder / "8")


@pytest.fixture
def copied_run(whole_run, tmp_path):
    shutil.copytree(whole_run[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def live(copied_run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is damaged
        yield LiveRun(copied_run)


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def before(module, name, turn, monkeypatch):
    """Has the run make its turn just before a function is called."""
    original = getattr(module, name)

    def called(*arguments, **named):
        turn()
        return original(*arguments, **named)

    monkeypatch.setattr(module, name, called)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (manifest, "verify"),  # listed, and gone when it is to be verified
        (manifest, "_digest"),  # while it is verified
        (reading, "run_of"),  # verified, and gone when it is to be read
        (reading, "read_model"),
        (reading, "_refuse_other_arrays"),
        (reading.ocp.StandardCheckpointer, "restore"),
    ],
)
def test_the_next_checkpoint_is_read_when_one_goes(module, name, live, monkeypatch, whole_run):
    before(module, name, live.turn, monkeypatch)
    params, _, _ = load_params(live.output)
    for got, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(whole_run[1]), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_what_was_read_of_files_that_went_is_not_used(live):
    """Arrays whose files are gone may read as zeros, without any error."""

    def read(folder, run):
        live.turn()
        return run["step"]

    assert reading.read_newest(live.output, None, read) == 12


def test_errors_of_reads_that_are_given_up_are_not_printed(live, monkeypatch):
    class Late:
        def __del__(self):
            raise ValueError("nobody can catch this")

    def read(folder, run):
        cycle = [Late()]
        cycle.append(cycle)
        live.turn()
        if run["step"] == 8:
            raise OSError("gone")
        return run["step"]

    heard = []
    monkeypatch.setattr(sys, "unraisablehook", lambda late: heard.append(str(late.exc_value)))
    assert reading.read_newest(live.output, None, read) == 12
    assert not heard
    gc.collect()
    assert heard == ["nobody can catch this"]  # of the second read, which was not given up


def test_the_checkpoint_asked_for_is_said_to_be_gone(live, monkeypatch):
    before(reading, "read_model", live.turn, monkeypatch)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 8 .*there are \[12\]"):
        load_params(live.output, step=8)


def test_a_folder_that_goes_as_a_whole_is_not_damaged(copied_run, monkeypatch):
    before(manifest, "_digest", lambda: shutil.rmtree(copied_run, ignore_errors=True), monkeypatch)
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        open_run(copied_run)


def test_looking_again_has_an_end(copied_run, monkeypatch):
    def read(folder, run):
        (folder / "params" / "_METADATA").unlink(missing_ok=True)

    def whole(folder):
        return reading.run_of(folder)

    monkeypatch.setattr(reading, "verified_run", whole)
    monkeypatch.setattr(reading, "_TRIES", 2)
    with pytest.raises(FileNotFoundError, match="2 checkpoints while they were read") as error:
        reading.read_newest(copied_run, None, read)
    assert str(copied_run / "checkpoints") in one_line(error)


def test_an_error_that_no_removal_explains_is_raised(copied_run):
    def read(folder, run):
        raise KeyError(folder.name)

    with pytest.raises(KeyError, match="12"):
        reading.read_newest(copied_run, None, read)


def test_a_step_and_another_checkpoints_folder_contradict(copied_run):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 8 in .*12, which"):
        open_run(copied_run / "checkpoints" / "12", step=8)


def test_a_file_that_cannot_be_read_is_not_set_aside(copied_run, monkeypatch):
    def fails(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(manifest, "_digest", fails)
    with pytest.raises(ValueError, match=r"cannot be read \(Permission denied\)") as error:
        load_params(copied_run)
    assert not isinstance(error.value, DamagedCheckpoint)
    one_line(error)


def seal(path, body):
    del body["sha256"]
    path.write_text(json.dumps({**body, "sha256": manifest._digest_of(body)}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda body: body.pop("format"), "lacks format; needed: format, facts, files, sha256"),
        (lambda body: body.pop("facts"), "lacks facts"),
        (lambda body: body.pop("files"), "lacks files"),
        (lambda body: body.update(files=[]), "files is .*; allowed: an object"),
        (lambda body: body["files"].update(x=None), "'x'"),
        (lambda body: body.update(facts={}), "lacks step, validation_loss"),
        (lambda body: body.update(format=2), "has format 2; this version reads 1"),
    ],
)
def test_a_sealed_manifest_that_lacks_something_is_damage(change, reason, copied_run):
    path = copied_run / "checkpoints" / "12" / manifest.NAME
    body = json.loads(path.read_text())
    change(body)
    seal(path, body)
    with pytest.raises(DamagedCheckpoint, match=reason) as error:
        load_params(path.parent)
    assert str(path) in one_line(error)


def test_a_manifest_of_brackets_is_damage(copied_run):
    path = copied_run / "checkpoints" / "12" / manifest.NAME
    path.write_text("[" * 100_000)
    with pytest.warns(UserWarning, match="checkpoint 12 is damaged, 8 is used instead"):
        assert reading.find_checkpoint(copied_run)[0].name == "8"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda run: run.pop("config"), "lacks config"),
        (lambda run: run.update(step="12"), "step is '12'; allowed: an integer"),
        (lambda run: run.update(config=[]), "config is .*; allowed: an object"),
        (lambda run: run.update(tokenizer=3), "tokenizer is 3; allowed: an object"),
        (lambda run: run["config"].pop("data"), "config: lacks data; needed: model, data"),
        (lambda run: run["config"].update(model=None), "config: model is None; allowed: an object"),
        (lambda run: run["config"].update(optim=7), "config: optim is 7; allowed: an object"),
        (lambda run: run["config"]["model"].pop("class"), "model.class is None; allowed: "),
        (lambda run: run["config"]["model"].pop("vocab_size"), "vocab_size"),
        (lambda run: run["config"]["model"].update(vocab_size=None), "vocab_size"),
        (lambda run: run["config"]["data"].update(abcdigits=[]), "data.abcdigits is"),
        (
            lambda run: run["config"]["model"].update(num_layers=3),
            r"params is of another model: its layers/tiles/\w+ has shape \(2, .*, not \(3, ",
        ),
        (lambda run: run["tokenizer"].pop("name"), "its tokenizer: lacks name"),
        (lambda run: run.update(tokenizer={}), "its tokenizer: lacks name"),
        (lambda run: run["tokenizer"].update(settings={"alphabet": 5}), "settings has 5; allowed"),
        (lambda run: run.update(unwritten_metrics=[5]), "unwritten_metrics has 5; allowed: str"),
        (lambda run: run["tokenizer"].update(vocab_size=None), "vocab_size is None; allowed"),
    ],
)
def test_sealed_run_facts_that_cannot_be_used(change, reason, copied_run):
    folder = copied_run / "checkpoints" / "12"
    change_run_facts(folder, change)
    with pytest.raises((ValueError, TypeError), match=reason) as error:
        open_run(folder)
    assert str(folder) in one_line(error)


def test_arrays_of_another_model_are_named(copied_run):
    folder = copied_run / "checkpoints" / "12"
    shape = jax.ShapeDtypeStruct((2,), "float32")
    with pytest.raises(ValueError, match=r"params is of another model: it has no w, of shape \(2,"):
        reading.read_item(folder, "params", {"w": shape})
    params = load_params(folder)[0]
    del params["layers"]
    with pytest.raises(
        ValueError, match=r"another model: it has layers/tiles/\w+ besides"
    ) as error:
        reading.read_item(folder, "params", params)
    one_line(error)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("multiscren-speeches", r"there is no such folder \(did you mean multiscreen-speeches"),
        ("nothing", "no run at nothing: .*shipped models: multiscreen-speeches, transformer-spee"),
        ("run/config.json", "run/config.json is a file; allowed: the output folder"),
        ("rum", r"no run at rum: there is no such folder \(did you mean run\?\)"),
        ("run\0", "the run is 'run.x00'; allowed"),
        ("", "the run is ''; allowed"),
        (None, "the run is None; allowed"),
        ("run/tokenizer", "no checkpoint in run/tokenizer"),
    ],
)
def test_names_that_are_no_run(name, message, copied_run, monkeypatch):
    monkeypatch.chdir(copied_run.parent)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        open_run(name)
    one_line(error)


def test_shipped_models_open_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = open_run("multiscreen-speeches")
    assert (opened.step, opened.folder, opened.title) == (None, None, "shipped model")
    assert opened.tokenizer.name == "bytes"
    assert (opened.readable().source, opened.data.sequence_length) == ("sotu", 256)
    with pytest.raises(ValueError, match="--step is 4; allowed: none of multiscreen-speeches"):
        open_run("multiscreen-speeches", step=4)
