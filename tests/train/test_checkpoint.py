"""Damage is found and named, the checkpoint before is used, nothing is deleted; what is kept."""

import errno
import json
import logging
import math
import shutil
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from multiscreen_jax.sharding import make_mesh
from multiscreen_jax.train import (
    checkpoint,
    load_params,
    manifest,
    orbax_threads,
    override,
    reading,
    train,
)
from multiscreen_jax.train.errors import CheckpointNotSaved, is_ours, one_line_errors
from multiscreen_jax.train.manifest import DamagedCheckpoint
from multiscreen_jax.train.state import TrainState
from tests.marks import slow_unless
from tests.train import small


def largest_file(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )


def truncate(folder):
    path = largest_file(folder / "params")
    path.write_bytes(path.read_bytes()[:-7])
    return path, "bytes instead of"


def flip(folder):
    path = largest_file(folder / "optimizer")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path, "does not match its SHA-256 checksum"


def delete(folder):
    path = largest_file(folder / "params")
    path.unlink()
    return path, "is missing"


def lose_manifest(folder):
    (folder / manifest.NAME).unlink()
    return folder / manifest.NAME, "is missing"


def edit_manifest(folder):
    path = folder / manifest.NAME
    path.write_text(path.read_text().replace('"step": 12', '"step": 13'))
    return path, "does not match its SHA-256 checksum"


def cut_manifest(folder):
    path = folder / manifest.NAME
    path.write_text(path.read_text()[:50])
    return path, "cannot be read"


def other_manifest(folder):
    path = folder / manifest.NAME
    path.write_text("[]")
    return path, "cannot be read"


DAMAGES = [truncate, flip, delete, lose_manifest, edit_manifest, cut_manifest, other_manifest]


@pytest.fixture
def copied_run(whole_run, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(whole_run[0], output)
    return output


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_checkpoint_before_is_found(damage, copied_run):
    newest = copied_run / "checkpoints" / "12"
    path, reason = damage(newest)
    with pytest.raises(DamagedCheckpoint, match=reason) as raised:
        reading.find_checkpoint(newest)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.warns(UserWarning, match="checkpoint 12 is damaged, 8 is used instead") as warned:
        assert reading.find_checkpoint(copied_run)[0].name == "8"
    assert reason in str(warned[0].message)
    with pytest.raises(DamagedCheckpoint, match=reason):
        load_params(copied_run, step=12)


def test_a_checkpoint_that_is_being_written_is_passed_over_in_silence(copied_run, recwarn):
    lose_manifest(copied_run / "checkpoints" / "12")
    (copied_run / "checkpoints" / ".pending-12").touch()
    assert reading.find_checkpoint(copied_run)[0].name == "8"
    assert not recwarn.list


def as_killed_before_the_manifest(output, marker):
    """What a kill between Orbax's commit and the manifest of step 12 leaves; its folder."""
    newest = output / "checkpoints" / "12"
    lose_manifest(newest)
    newest.with_name(".pending-12").write_text(marker)
    return newest


@pytest.mark.parametrize(
    ("marker", "loss"), [('{"step": 12, "validation_loss": 2.5}', 2.5), ("", None)]
)
def test_a_committed_checkpoint_without_manifest_is_sealed_and_used(
    marker, loss, copied_run, text, whole_run, capsys
):
    newest = as_killed_before_the_manifest(copied_run, marker)
    result = train(small.config(text, copied_run))
    printed = capsys.readouterr().out
    assert "checkpoint 12 was saved, but had no manifest yet; written now" in printed
    assert "after step 12" in printed
    assert manifest.verify(newest) == {"step": 12, "validation_loss": loss}
    assert not newest.with_name(".pending-12").exists()
    for got, wanted in zip(
        jax.tree.leaves(result.params), jax.tree.leaves(whole_run[1]), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("item", slow_unless(("params",), (".", "params", "run")))
def test_an_uncommitted_checkpoint_is_removed(item, copied_run, text, whole_run, capsys):
    newest = as_killed_before_the_manifest(copied_run, "")
    (newest / item / "commit_success.txt").unlink()
    train(small.config(text, copied_run))
    printed = capsys.readouterr().out
    assert "checkpoint 12 was still being written when the run ended; removed" in printed
    assert "after step 8" in printed
    assert not (copied_run / "checkpoints" / "refused").exists()
    assert small.loss_bits(copied_run) == small.loss_bits(whole_run[0])


def test_a_marker_left_beside_a_manifest_does_not_hide_its_loss(copied_run, text, capsys):
    newest = copied_run / "checkpoints" / "12"
    marker = newest.with_name(".pending-12")
    marker.touch()  # killed between writing the manifest and removing this
    train(small.config(text, copied_run))
    assert not marker.exists()
    lose_manifest(newest)
    train(small.config(text, copied_run))
    assert "checkpoint 12 is damaged and not used" in capsys.readouterr().out


@pytest.mark.parametrize("damage", slow_unless((truncate,), (truncate, lose_manifest)))
def test_training_goes_on_from_the_checkpoint_before(damage, copied_run, text, whole_run, capsys):
    newest = copied_run / "checkpoints" / "12"
    path, reason = damage(newest)
    files = {p.relative_to(newest): p.read_bytes() for p in newest.rglob("*") if p.is_file()}
    result = train(small.config(text, copied_run))
    printed = capsys.readouterr().out
    assert printed.startswith("train: 1 .jsonl in ")
    assert "checkpoint 12 is damaged and not used" in printed
    assert str(path) in printed
    assert reason in printed
    assert "after step 8" in printed
    assert small.loss_bits(copied_run) == small.loss_bits(whole_run[0])
    for got, wanted in zip(
        jax.tree.leaves(result.params), jax.tree.leaves(whole_run[1]), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)
    aside = copied_run / "checkpoints" / "refused" / "12.0"
    kept = {p.relative_to(aside): p.read_bytes() for p in aside.rglob("*") if p.is_file()}
    assert kept == files
    reading.verified_run(newest)  # written anew


def test_nothing_is_trained_when_every_checkpoint_is_damaged(copied_run, text):
    for step in reading.steps_in(copied_run / "checkpoints"):
        flip(copied_run / "checkpoints" / str(step))
    with pytest.raises(DamagedCheckpoint, match="no usable checkpoint in"):
        train(small.config(text, copied_run))
    assert len(small.records(copied_run)) == small.STEPS


def test_changed_settings_are_refused_by_name(copied_run, text):
    config = small.config(text, copied_run)
    changed = override(config, optim={"learning_rate": 0.5}, data={"seed": 7})
    with pytest.raises(
        ValueError, match=r"data.seed was 0, now 7.*optim.learning-rate was"
    ) as error:
        train(changed)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"model.num-heads was 2, now 4"):
        train(override(config, model={"num_heads": 4}))


def test_changed_data_is_refused(copied_run, text, tmp_path):
    other = tmp_path / "documents.jsonl"
    other.write_text(text.read_text().replace("window", "wIndow"))
    config = small.config(other, copied_run)
    run = json.loads((copied_run / "checkpoints" / "12" / "run" / "metadata").read_text())
    assert run["config"]["data"]["source"] == str(text)
    shutil.copy(other, text.with_suffix(".backup"))
    original = text.read_text()
    try:
        text.write_text(other.read_text())
        with pytest.raises(ValueError, match="other data"):
            train(override(config, data={"source": str(text)}))
    finally:
        text.write_text(original)


def test_load_params_gives_parameters_model_and_config(whole_run):
    output, params = whole_run
    loaded, model, config = load_params(output)
    for got, wanted in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert model.config == config.model
    assert config.model.trained_length == config.data.sequence_length == 16
    earlier, _, _ = load_params(output, step=8)
    assert not np.array_equal(earlier["embedding"]["rows"], loaded["embedding"]["rows"])


def test_missing_checkpoints_are_named(tmp_path, whole_run):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        load_params(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 5 .* \[8, 12\]"):
        load_params(whole_run[0], step=5)


def test_steps_taken_while_saving_do_not_reach_the_checkpoint(tmp_path):
    """The step donates the buffers that are being written: the save must have its own copy."""
    whole = NamedSharding(make_mesh(), PartitionSpec())
    ones = jax.device_put(jnp.ones(4_000_000), whole)
    state = TrainState(step=jax.device_put(0, whole), params={"w": ones}, optimizer_state={})
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints = checkpoint.Checkpoints(tmp_path, keep_last=1, keep_best=0)
    checkpoints.save(state, {"step": 1}, None)
    for _ in range(3):
        state = jax.block_until_ready(step(state))
    checkpoints.close()
    saved = reading.read_item(tmp_path / "checkpoints" / "1", "params", state.params)
    np.testing.assert_array_equal(saved["w"], 1)
    assert state.params["w"][0] == 4


def test_an_error_while_saving_is_raised(tmp_path, monkeypatch):
    def full(folder, facts):
        raise OSError("No space left on device")

    monkeypatch.setattr(manifest, "write", full)
    whole = NamedSharding(make_mesh(), PartitionSpec())
    state = TrainState(step=jax.device_put(0, whole), params={"w": jnp.ones(3)}, optimizer_state={})
    checkpoints = checkpoint.Checkpoints(tmp_path, keep_last=1, keep_best=0)
    checkpoints.save(state, {"step": 1}, None)
    text = "^could not save checkpoint 1: No space left on device$"
    with pytest.raises(CheckpointNotSaved, match=text) as raised:
        checkpoints.close()
    assert isinstance(raised.value.__cause__, OSError)
    assert is_ours(raised.value)
    # Launchers start a run again after 1 and after this, and not after 2 and 3.
    with pytest.raises(SystemExit, match="4"), one_line_errors():
        raise raised.value


def test_a_save_says_nothing_of_what_orbax_will_drop(tmp_path, caplog, recwarn):
    whole = NamedSharding(make_mesh(), PartitionSpec())
    state = TrainState(step=jax.device_put(0, whole), params={"w": jnp.ones(3)}, optimizer_state={})
    with caplog.at_level("WARNING"):
        checkpoints = checkpoint.Checkpoints(tmp_path, keep_last=1, keep_best=0)
        checkpoints.save(state, {"step": 1}, None)
        checkpoints.close()
    assert not [record for record in caplog.records if "deprecated" in record.getMessage()]
    assert not [warning for warning in recwarn if "deprecated" in str(warning.message)]


def test_what_orbax_s_threads_say_of_a_failed_save_is_left_out_and_nothing_else(capsys):
    async def orbax_work():
        pass

    def ignored(coroutine, error):
        fields = {"object": coroutine, "exc_type": type(error), "exc_value": error}
        sys.unraisablehook(SimpleNamespace(**fields, exc_traceback=None, err_msg=None))

    orbax_threads.keep_quiet()
    absl = logging.getLogger("absl")
    fields = {"name": "absl", "level": logging.ERROR, "msg": "x", "args": (), "exc_info": None}
    orbax = logging.LogRecord(pathname="/site/orbax/checkpoint/future.py", lineno=1, **fields)
    other = logging.LogRecord(pathname="/site/grain/future.py", lineno=1, **fields)
    assert (bool(absl.filter(orbax)), bool(absl.filter(other))) == (False, True)
    fields["name"] = "asyncio"
    words = "Future exception was never retrieved: ValueError('4.orbax-checkpoint-tmp: no space')"
    orbax = logging.LogRecord(pathname="x", lineno=1, **{**fields, "msg": words})
    other = logging.LogRecord(pathname="x", lineno=1, **fields)
    asyncio = logging.getLogger("asyncio")
    assert (bool(asyncio.filter(orbax)), bool(asyncio.filter(other))) == (False, True)
    said = []
    before, sys.unraisablehook = sys.unraisablehook, orbax_threads._filtered(said.append)
    try:
        ignored(None, RuntimeError("Event loop is closed"))
        assert not said
        ignored(None, RuntimeError("ours"))
        coroutine = orbax_work()
        ignored(coroutine, ImportError())
        coroutine.close()
        assert len(said) == 2
    finally:
        sys.unraisablehook = before


def sealed(folder, step, loss):
    (folder / str(step)).mkdir()
    (folder / str(step) / "file").write_text("content")
    manifest.write(folder / str(step), {"step": step, "validation_loss": loss})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_never_the_best(bad, tmp_path):
    for step, loss in [(10, bad), (20, 1.0), (30, 2.0), (40, 3.0), (50, bad)]:
        sealed(tmp_path, step, loss)
    assert checkpoint.KeepSealed(tmp_path, keep_last=1, keep_best=1).surplus() == {10, 30, 40}
    assert checkpoint.KeepSealed(tmp_path, keep_last=1, keep_best=9).surplus() == {10}


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step, loss in [(1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, 4.0), (6, None)]:
        sealed(tmp_path, step, loss)
    (tmp_path / "7").mkdir()  # being written
    assert checkpoint.KeepSealed(tmp_path, keep_last=2, keep_best=0).surplus() == {1, 2, 3, 4}
    assert checkpoint.KeepSealed(tmp_path, keep_last=2, keep_best=2).surplus() == {1, 3}
    assert checkpoint.KeepSealed(tmp_path, keep_last=1, keep_best=1).surplus() == {1, 3, 4, 5}


def test_a_checkpoint_that_cannot_be_removed_does_not_end_a_finished_run(copied_run, monkeypatch):
    def busy(folder):
        raise OSError(errno.EBUSY, "Device or resource busy", str(folder))

    monkeypatch.setattr(shutil, "rmtree", busy)
    with pytest.warns(UserWarning, match=r"checkpoint 8 .* could not be removed: .* busy") as told:
        checkpoint.Checkpoints(copied_run, keep_last=1, keep_best=0).close()
    assert len(told) == 1
