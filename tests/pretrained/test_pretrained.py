"""The shipped models predict the text that they were trained for, as their cards say."""

import re
from pathlib import Path

import pytest

import multiscreen_jax as mj
from multiscreen_jax.data import DataConfig
from tests.marks import slow_unless


def card(name):
    return (Path(mj.pretrained.__file__).parent / name / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_unless(("multiscreen-speeches",), mj.pretrained.names()))
def test_the_card_is_right(name):
    model, params, _ = mj.pretrained.load(name)
    data = DataConfig(sequence_length=model.config.trained_length, batch_size=16)
    pipeline = mj.data.open_pipeline(data, "valid")
    found = mj.evaluation.evaluate(model, params, pipeline, max_batches=8)["bits_per_byte"]
    said = re.search(r"([\d.]+) bits per byte on the first 8 batches", card(name))[1]
    assert f"{found:.3f}" == said


def test_text_in_text_out():
    model, params, tokenizer = mj.pretrained.load("multiscreen-speeches")
    prompt = tokenizer.encode("The Government of the United ")
    new = mj.generate(model, params, prompt, max_new_tokens=6)
    assert tokenizer.decode(new) == "States"


def test_a_config_field_can_be_changed():
    model, _, _ = mj.pretrained.load("multiscreen-speeches", infinite_windows=True)
    assert model.config.infinite_windows
    with pytest.raises(TypeError, match="infinite"):
        mj.pretrained.load("multiscreen-speeches", infinite_window=True)
    with pytest.raises(ValueError, match=r"num_layers=3 needs other parameters than those of mul"):
        mj.pretrained.load("multiscreen-speeches", num_layers=3)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"'speeches'; .*known: multiscreen-speeches, tran"):
        mj.pretrained.load("speeches")
