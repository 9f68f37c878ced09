"""A real file system without room: one error of one line, code 4, and the same run afterwards."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from multiscreen_jax.train import metrics, train
from multiscreen_jax.train.errors import NotWritten, exit_code
from multiscreen_jax.train.reading import steps_in
from tests.train import small

ROOT = Path(__file__).parents[2]
ROOM = "remount,size=50m,nr_inodes=100000"
FULL = "[Errno 28] No space left on device"


@pytest.fixture
def disk(tmp_path):
    """mount(options) gives a file system of that size, or changes it to that."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        if mounted.returncode:
            pytest.skip(f"no file system of any size here: {mounted.stderr.strip()}")
        return place

    yield mount
    subprocess.run(["umount", "--lazy", str(place)], capture_output=True, check=False)


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        ("size=450k", [4]),  # the second checkpoint fails
        # metrics.jsonl, or a file before it
        pytest.param("nr_inodes=6", [], marks=pytest.mark.slow),
        pytest.param("nr_inodes=70", [4], marks=pytest.mark.exhaustive),
        pytest.param("size=60k", [], marks=pytest.mark.exhaustive),  # the first checkpoint
        pytest.param("size=4k", [], marks=pytest.mark.exhaustive),  # config.json
    ],
)
def test_what_fits_is_whole_and_the_run_goes_on_when_there_is_room(
    options, saved, disk, text, whole_run, capfd
):
    output = disk(options) / "run"
    config = small.config(text, output, "--train.keep-last", "9")
    with pytest.raises(NotWritten) as failed:
        train(config)
    assert FULL in str(failed.value)
    assert "\n" not in str(failed.value)
    assert exit_code(failed.value) == 4
    assert steps_in(output / "checkpoints") == saved
    assert "Traceback" not in capfd.readouterr().err
    disk(ROOM)
    train(config)
    assert ("continues" in capfd.readouterr().out) == bool(saved)
    assert small.loss_bits(output) == small.loss_bits(whole_run[0])


@pytest.mark.parametrize(
    "options", ["size=300k", pytest.param("size=700k", marks=pytest.mark.exhaustive)]
)
@pytest.mark.slow
def test_the_command_says_one_line_and_ends_with_4(options, disk, text):
    output = disk(options) / "run"
    more = ["--train.tensorboard", "True", "--train.steps", "200"]
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.train", *small.arguments(text, output, *more)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 4
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: could not ")
    assert line.endswith(FULL)
    assert f"TensorBoard is left out from here on: {FULL}" in ended.stdout


@pytest.mark.slow
def test_a_record_that_cannot_be_written_ends_the_run_saved_and_lacks_no_line_later(
    disk, text, tmp_path
):
    steps = ["--train.steps", "60", "--train.checkpoint-every", "0"]
    train(small.config(text, tmp_path / "lone", *steps))
    output, elsewhere = disk("size=24k") / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    output.mkdir()
    (output / "checkpoints").symlink_to(elsewhere)
    config = small.config(text, output, *steps)
    with pytest.raises(NotWritten, match=r"metrics\.jsonl: .* stopped after step \d+ and saved$"):
        train(config)
    (step,) = steps_in(elsewhere)
    assert 1 < step < 60
    disk(ROOM)
    train(config)
    assert small.loss_bits(output) == small.loss_bits(tmp_path / "lone")


def test_a_folder_that_is_removed_under_way_ends_the_run_and_stays_away(
    text, tmp_path, monkeypatch
):
    output = tmp_path / "run"
    write = metrics.JsonLines.write

    def write_and_remove(self, record):
        write(self, record)
        if record["step"] == 6:
            shutil.rmtree(output)

    monkeypatch.setattr(metrics.JsonLines, "write", write_and_remove)
    with pytest.raises(NotWritten) as failed:
        train(small.config(text, output, "--train.checkpoint-every", "0"))
    assert "run was removed or replaced while this process wrote in it" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert not output.exists()
