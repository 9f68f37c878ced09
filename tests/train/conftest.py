"""One uninterrupted run that the resume tests compare with."""

import pytest

from multiscreen_jax.train import train
from tests.train import small


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    return small.write_text(tmp_path_factory.mktemp("text") / "documents.jsonl")


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory, text):
    """(output folder, final parameters as numpy) of a run that nobody interrupted."""
    output = tmp_path_factory.mktemp("whole") / "run"
    result = train(small.config(text, output))
    assert result.step == small.STEPS
    return output, result.params
