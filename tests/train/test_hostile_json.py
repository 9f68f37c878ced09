"""Manifests and metrics files that somebody else may have written."""

import hashlib
import json

import pytest

from multiscreen_jax.train import manifest, metrics
from multiscreen_jax.train.manifest import DamagedCheckpoint

FACTS = {"step": 3, "validation_loss": float("nan")}
DEEP = "[" * 100_000


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "3"
    folder.mkdir()
    (folder / "weights").write_bytes(b"weights")
    manifest.write(folder, FACTS)
    return folder


def test_a_good_manifest_is_read(folder):
    assert manifest.read(folder)["step"] == manifest.verify(folder)["step"] == 3


def seal_again(folder, **changes):
    """Changes a manifest (None takes a key out) and gives it the digest that fits."""
    path = folder / manifest.NAME
    body = {**json.loads(path.read_text()), **changes}
    body = {key: value for key, value in body.items() if value is not None and key != "sha256"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**body, "sha256": digest}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": None}, "lacks format"),
        ({"facts": None, "files": None}, "lacks facts, files"),
        ({"format": "1"}, "format is '1'; allowed: an integer"),
        ({"facts": []}, r"facts is \[\]; allowed: an object"),
        ({"facts": {}}, "facts: lacks step, validation_loss"),
        ({"files": {"weights": 7}}, "'weights': holds an integer"),
        ({"files": {"weights": {"bytes": 7}}}, "'weights': lacks sha256"),
        ({"files": {"weights": {"bytes": "7", "sha256": ""}}}, "bytes is '7'"),
    ],
)
def test_a_sealed_manifest_without_its_keys(folder, changes, said):
    seal_again(folder, **changes)
    with pytest.raises(DamagedCheckpoint, match=said) as caught:
        manifest.verify(folder)
    assert str(folder / manifest.NAME) in str(caught.value)


@pytest.mark.parametrize("content", [DEEP, '{"facts": ' + DEEP, "{", "3", b"\xff", b""])
def test_what_is_no_manifest(folder, content):
    content = content if isinstance(content, bytes) else content.encode()
    (folder / manifest.NAME).write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=r"cannot be read: ") as caught:
        manifest.read(folder)
    assert "\n" not in str(caught.value)


def test_metrics_lines_that_are_no_records_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    odd = [DEEP, "7", '{"step": "1"}', '{"step": true}', '{"step": 1' + "0" * 5000 + "}", "{}"]
    path.write_text("\n".join(['{"step": 1}', *odd, '{"step": 2}', '{"step": 3}']) + "\n")
    metrics.keep_until(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_unwritten_lines_that_are_no_record_are_left_out(tmp_path):
    path = tmp_path / metrics.FILE
    lines = ['{"step": 1}\n', "5\n", "\ud800\n", '{"step": "2"}\n', '{"step": 2}', '{"step": 2}\n']
    metrics.keep_until(path, 2, lines)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
