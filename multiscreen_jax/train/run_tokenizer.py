"""The tokenizer that a run was trained with, kept in its folder.

    OUTPUT/tokenizer/facts.json       name, settings, number of tokens, fingerprint
    OUTPUT/tokenizer/tokenizer.json   the file byte for byte, where the tokenizer is one

Whatever opens a run reads and writes text with this one. Checkpoints hold the same facts, so that a
copy that was replaced is noticed.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multiscreen_jax.data import DataConfig, Tokenizer, open_pipeline, open_tokenizer, synthetic
from multiscreen_jax.data.config import (
    NAMED_TOKENIZERS,
    SYNTHETIC,
    near_matches,
    require_integer,
)
from multiscreen_jax.data.loading import prepared_tokens
from multiscreen_jax.data.tokenizers import CharacterTokenizer, NumberTokenizer
from multiscreen_jax.json_files import read_object
from multiscreen_jax.train import config_json
from multiscreen_jax.train.errors import writing
from multiscreen_jax.train.places import located
from multiscreen_jax.train.reading import output_of

FOLDER = "tokenizer"
FACTS = "facts.json"
COPY = "tokenizer.json"
_FACTS = {
    "name": str,
    "settings": dict,
    "vocab_size": int,
    "eos_id": int | None,
    "fingerprint": str,
}


def facts_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """What has to be known to open a tokenizer again, and to know it again."""
    return {name: getattr(tokenizer, name) for name in _FACTS}


def described(facts: Mapping[str, Any]) -> str:
    """A tokenizer as messages name it, short however long its alphabet is."""
    name, fingerprint = facts["name"], facts["fingerprint"]
    if not _is_file(name):
        fingerprint = hashlib.sha256(fingerprint.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{name!r} ({facts['vocab_size']} tokens, fingerprint {fingerprint[:12]})"


def refuse_other(
    one: Mapping[str, Any], other: Mapping[str, Any], of_one: str, of_other: str
) -> None:
    """ValueError unless two tokenizers, given by their facts, encode alike.

    The line reads "`of_one` A, `of_other` B", and says which characters are more or fewer.
    """
    if one["fingerprint"] == other["fingerprint"]:
        return
    text = f"{of_one} {described(one)}, {of_other} {described(other)}"
    before, after = (set(facts["settings"].get("alphabet", "")) for facts in (one, other))
    if before and after:
        more, fewer = "".join(sorted(after - before)), "".join(sorted(before - after))
        text += f", which has {more[:40]!r} besides" if more else ""
        text += f", which lacks {fewer[:40]!r}" if fewer else ""
    raise ValueError(text)


def keep(output: Path, tokenizer: Tokenizer) -> None:
    """Writes the copy, in place of any other, in one move.

    Raises:
      NotWritten: it cannot be written.
      ValueError: the tokenizer's file was replaced since it was opened.
    """
    target, partial = output / FOLDER, output / f".{FOLDER}.partial"
    facts = facts_of(tokenizer)
    with writing(target):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if _is_file(tokenizer.name):
            content = Path(tokenizer.name).read_bytes()
            facts["sha256"] = hashlib.sha256(content).hexdigest()
            _write(partial / COPY, content)
        _write(partial / FACTS, (json.dumps(facts, indent=2) + "\n").encode())
        _read(partial)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)


def kept(output: Path) -> Tokenizer | None:
    """The tokenizer in a run's folder; None where there is no copy.

    Raises:
      ValueError: the copy is damaged.
    """
    folder = output / FOLDER
    return _read(folder) if folder.exists() else None


def tokenizer_of(checkpoint: Path, run: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a checkpoint's parameters were trained with.

    Args:
      checkpoint: its folder; the copy lies in the run's folder around it.
      run: its run facts.

    Without a copy it comes from where training got it, is compared, and there is a warning.

    Raises:
      ValueError: the copy is damaged, or it or what takes its place is another tokenizer.
      FileNotFoundError: there is no copy, and the file or corpus it was made of is gone.
    """
    output = output_of(checkpoint)
    trained = f"{checkpoint} was trained with tokenizer"
    data, known = config_json.from_dict(run["config"]).data, run.get("tokenizer")
    if known is not None:
        _check(known, checkpoint)
    copy = kept(output)
    if copy is None:
        missing = f"{output} has no copy of its tokenizer"
        if known is None:
            return _made_anew(data, run["data_fingerprint"], missing)
        again = _from_facts(known, located(known["name"], run.get("working_directory")))
        refuse_other(known, facts_of(again), trained, "what is there in place of its copy is")
        _warn(f"{missing}; {described(known)} is opened as in training")
        return again
    settled = _of_settings(data) if known is None else None
    expected = known if settled is None else facts_of(settled)
    if expected is not None:
        refuse_other(expected, facts_of(copy), trained, f"{output / FOLDER} holds")
    return copy


def read_with(data: DataConfig, tokenizer: Tokenizer) -> DataConfig:
    """The config of data to be read with a run's own tokenizer, not with one made of the data."""
    if data.source in SYNTHETIC:
        return data
    return dataclasses.replace(
        data,
        tokenizer=tokenizer.name,
        alphabet=tokenizer.settings.get("alphabet"),
        eos_token=tokenizer.settings.get("eos_token"),
    )


def _made_anew(data: DataConfig, fingerprint: str, missing: str) -> Tokenizer:
    """The tokenizer of a run that earlier versions trained, whose checkpoints do not know it.

    The fingerprint is of the data, the tokenizer's included, so both are read once more.
    """
    settled = _of_settings(data)
    if settled is not None:
        _warn(f"{missing}; {settled.name!r} is opened as its settings say")
        return settled
    data = dataclasses.replace(
        data, **{name: located(getattr(data, name)) for name in _places(data)}
    )
    try:
        pipeline = open_pipeline(data, "train")
    except FileNotFoundError as error:
        # Then these alone say what the tokens are.
        if not _is_file(data.tokenizer) or data.source.endswith(".bin"):
            raise FileNotFoundError(f"{missing}, and it cannot be made anew: {error}") from None
        tokenizer = open_tokenizer(data.tokenizer, eos_token=data.eos_token)
        _warn(f"{missing}; {tokenizer.name!r} is used unchecked, since its data is gone")
        return tokenizer
    if pipeline.fingerprint != fingerprint:
        found = described(facts_of(pipeline.tokenizer))
        raise ValueError(
            f"{missing}, and cannot be read with {found}: this or {data.source} is not what it was "
            "when the run was trained"
        )
    _warn(f"{missing}; {described(facts_of(pipeline.tokenizer))} has the fingerprint it had")
    return pipeline.tokenizer


def _places(data: DataConfig) -> list[str]:
    names = ["source"] if data.valid_source is None else ["source", "valid_source"]
    return [*names, "tokenizer"] if _is_file(data.tokenizer) else names


def _of_settings(data: DataConfig) -> Tokenizer | None:
    """The tokenizer of a config that says all of it; None where files have their part in it."""
    if data.source in SYNTHETIC:
        return synthetic.open_tokenizer(data)
    try:
        is_prepared = prepared_tokens(data.source) is not None
    except FileNotFoundError:
        is_prepared = data.source.endswith(".bin")
    collected = data.tokenizer == "characters" and data.alphabet is None
    if is_prepared or collected or _is_file(data.tokenizer):
        return None
    return open_tokenizer(data.tokenizer, data.alphabet)


def _read(folder: Path) -> Tokenizer:
    try:
        facts = read_object(folder / FACTS, keys=_FACTS, optional={"sha256": str})
        file = folder / COPY
        digest = hashlib.sha256(file.read_bytes()).hexdigest() if _is_file(facts["name"]) else None
        if digest != facts.get("sha256"):
            raise ValueError(f"{COPY} does not match its SHA-256 checksum")
        tokenizer = _from_facts(facts, str(file))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} cannot be used: {error}") from None
    if tokenizer.fingerprint != facts["fingerprint"]:
        raise ValueError(
            f"{folder} cannot be used: {FACTS} says {described(facts)}, and what it holds is "
            f"{described(facts_of(tokenizer))}"
        )
    return tokenizer


def _check(facts: Mapping[str, Any], checkpoint: Path) -> None:
    read_object(json.dumps(facts), f"{checkpoint}: its tokenizer", keys=_FACTS)


def _from_facts(facts: Mapping[str, Any], file: str) -> Tokenizer:
    name, settings = facts["name"], facts["settings"]
    alphabet, eos_token = settings.get("alphabet"), settings.get("eos_token")
    if not all(isinstance(value, str) for value in settings.values()):
        raise ValueError(f"settings is {settings!r}; allowed: strings")
    if name == "numbers":
        require_integer("tokenizer", "vocab_size", facts["vocab_size"], 1, 2**31)
        return NumberTokenizer(facts["vocab_size"])
    if name == "characters" and alphabet:
        return CharacterTokenizer(alphabet, ends_documents=facts["eos_id"] is not None)
    if not _is_file(name) and name not in NAMED_TOKENIZERS:
        raise ValueError(
            f"its name is {name!r}; allowed: {', '.join(NAMED_TOKENIZERS)}, numbers, or a "
            f"tokenizer.json{near_matches(name, NAMED_TOKENIZERS)}"
        )
    return open_tokenizer(file if _is_file(name) else name, alphabet, eos_token)


def _is_file(name: str) -> bool:
    return name.endswith(".json")


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
