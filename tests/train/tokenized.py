"""Runs on a short text, with the tokenizers that it is read with."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from experiments.configs import tiny
from multiscreen_jax.train import override, setup, train

TEXT = "the cat sat on the mat and the dog ran to the log. "


class BeforeTheFirstStep(Exception):
    pass


def prepare(config, monkeypatch):
    """All that training does before its first step."""

    def stop(*arguments):
        raise BeforeTheFirstStep

    with monkeypatch.context() as patch:
        patch.setattr(setup, "_compile", stop)
        with pytest.raises(BeforeTheFirstStep):
            train(config)


def settings(output, source, tokenizer="characters", **changes):
    data = {"source": str(source), "tokenizer": str(tokenizer), "sequence_length": 16}
    run = {"output_dir": str(output), "steps": 2, "tensorboard": False}
    sections = {"data": data, "train": run, "model": {"implementation": "reference"}}
    for section, fields in changes.items():
        sections[section] |= fields
    return override(tiny.config(), **sections)


def write_tokenizer(path: Path, *words: str) -> Path:
    names = ["<eos>", "<other>", *words]
    vocabulary = {name: token for token, name in enumerate(names)}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<other>"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.save(str(path))
    return path


WORDS = ("the", "cat", "sat", "on", "mat", "and", "dog")


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def token_file(folder: Path) -> Path:
    write_tokenizer(folder / "words.json", *WORDS)
    facts = {"dtype": "uint16", "vocab_size": 9, "tokenizer": "words.json", "eos_token": "<eos>"}
    (folder / "tokens.json").write_text(json.dumps(facts))
    np.full(400, 2, np.uint16).tofile(folder / "tokens.bin")
    return folder / "tokens.bin"
