"""experiments.generate: text appears whole, and equals what decoding everything gives."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import generate as command
from experiments.configs import tiny
from multiscreen_jax.data import open_tokenizer
from multiscreen_jax.generation import generate
from multiscreen_jax.models import build
from multiscreen_jax.train.trained_run import TrainedRun
from tests.data import tokenizer_files

TEXT = "naïve — 漢字, Ωmega: 🙂🙂 end"


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_characters_appear_whole(name):
    tokenizer = open_tokenizer(name)
    parts = list(tokenizer.decode_stream(tokenizer.encode(TEXT)))
    assert "".join(parts) == TEXT
    assert sum(map(bool, parts)) > 10
    assert tokenizer.token_texts(tokenizer.encode(TEXT)) == parts
    assert not any("\ufffd" in part for part in parts)


def test_broken_bytes_do_not_hold_text_back():
    tokenizer = open_tokenizer("bytes")
    broken = [0x41, 0xFF, 0xFF, 0xFF, 0xFF, 0x42, 0xE2, 0x82]  # ends inside a character
    shown = list(tokenizer.decode_stream(broken))
    assert "".join(shown) == tokenizer.decode(broken)
    texts = tokenizer.token_texts(broken)
    assert (len(texts), "".join(texts)) == (len(broken), tokenizer.decode(broken))
    assert tokenizer.token_texts([]) == []
    assert list(itertools.islice(tokenizer.decode_stream(iter(broken)), 1)) == ["A"]


@functools.cache
def _trained():
    config = tiny.config()
    model = build(config.model)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    # Louder tiles, so that sampling does not only repeat the prompt.
    tiles = params["layers"]["tiles"]
    tiles = {**tiles, "output": 300 * tiles["output"], "logit_width": tiles["logit_width"] + 3}
    return {**params, "layers": {"tiles": tiles}}, model, config


@pytest.fixture
def trained(monkeypatch):
    params, model, config = _trained()
    opened = TrainedRun(None, 7, model, params, open_tokenizer("bytes"), config.data)
    monkeypatch.setattr(command, "open_run", lambda run, step, code: opened)


def test_prints_the_prompt_and_what_generate_gives(trained, tmp_path, capsys):
    settings = command.GenerateConfig(run=str(tmp_path), prompt="We", max_new_tokens=12, seed=3)
    text = command.run(settings)
    printed = capsys.readouterr()
    assert printed.out == f"We{text}\n"
    assert "[checkpoint of step 7]" in printed.err
    params, model, config = _trained()
    tokenizer = open_tokenizer(config.data.tokenizer)
    want = generate(
        model, params, tokenizer.encode("We"), 12, 0.8, jax.random.key(3), stop_tokens=(0,)
    )
    assert text == tokenizer.decode(want[want != 0])
    assert command.run(settings) == text
    assert command.run(dataclasses.replace(settings, seed=4)) != text


def test_empty_prompt_starts_a_document(trained, tmp_path):
    tokenizer = open_tokenizer("bytes")
    np.testing.assert_array_equal(command.prompt_ids(tokenizer, ""), [tokenizer.eos_id])
    assert isinstance(command.run(command.GenerateConfig(run=str(tmp_path), max_new_tokens=3)), str)


def test_errors(trained, tmp_path):
    with pytest.raises(ValueError, match="--seed is -1; allowed: an integer >= 0 and <= 429496"):
        command.run(command.GenerateConfig(run=str(tmp_path), prompt="We", seed=-1))
    with pytest.raises(ValueError, match="top_p must be None or in"):
        command.run(command.GenerateConfig(run=str(tmp_path), prompt="We", top_p=2.0))
    with pytest.raises(ValueError, match="trained_length"):
        command.run(command.GenerateConfig(run=str(tmp_path), infinite_windows=True))
    with pytest.raises(
        ValueError, match=r"--prompt has '.udcff' at position 2; allowed: text that"
    ):
        command.run(command.GenerateConfig(run=str(tmp_path), prompt="We\udcff"))
    alphabet = open_tokenizer("characters", alphabet="ab")
    with pytest.raises(ValueError, match="--prompt: character 'c' at position 0 is not in the"):
        command.prompt_ids(alphabet, "c")
    alphabet.eos_id = None
    with pytest.raises(ValueError, match="--prompt is empty"):
        command.prompt_ids(alphabet, "")


@pytest.mark.parametrize("kind", ["byte fallback", "WordPiece", "Unigram"])
def test_the_space_after_the_prompt_is_kept(trained, tmp_path, monkeypatch, capsys, kind):
    tokenizer = open_tokenizer(str(tokenizer_files.write(tmp_path / "t.json", kind)))
    both = tokenizer.encode("the cat sat on the mat").tolist()
    new = both[len(tokenizer.encode("the cat")) :]
    opened = dataclasses.replace(command.open_run("", None, None), tokenizer=tokenizer)
    monkeypatch.setattr(command, "open_run", lambda run, step, code: opened)
    monkeypatch.setattr(command, "stream", lambda *args, **kwargs: iter([[token] for token in new]))
    text = command.run(command.GenerateConfig(run=str(tmp_path), prompt="the cat"))
    assert text == " sat on the mat"
    assert capsys.readouterr().out == "the cat sat on the mat\n"
