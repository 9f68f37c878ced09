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
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multiscreen_jax.data import DataConfig, Tokenizer, open_tokenizer, synthetic
from multiscreen_jax.data.config import (
    NAMED_TOKENIZERS,
    SYNTHETIC,
    near_matches,
    require_integer,
)
from multiscreen_jax.data.folders import known_files
from multiscreen_jax.data.kinds import DOCUMENTS, TOKENS, extension_of
from multiscreen_jax.data.loading import open_split, prepared_tokens
from multiscreen_jax.data.pipeline import fingerprint_of
from multiscreen_jax.data.sources import NAMED
from multiscreen_jax.data.tokenizers import CharacterTokenizer, NumberTokenizer
from multiscreen_jax.json_files import read_object
from multiscreen_jax.paths import expanded_path
from multiscreen_jax.train import config_json
from multiscreen_jax.train.errors import writing
from multiscreen_jax.train.places import located
from multiscreen_jax.train.reading import TOKENIZER_FACTS, output_of

FOLDER = "tokenizer"
FACTS = "facts.json"
COPY = "tokenizer.json"


def facts_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """Facts by which a tokenizer can be opened, and recognised, again."""
    return {name: getattr(tokenizer, name) for name in TOKENIZER_FACTS}


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
      ValueError: the tokenizer's file was replaced since it was opened, or what has the copy's
        name is not a copy but the user's own.
    """
    target, partial = output / FOLDER, output / f".{FOLDER}.partial"
    facts = facts_of(tokenizer)
    with writing(target):
        if not _may_be_replaced(target):
            raise ValueError(
                f"{target} exists and is not a run's copy of its tokenizer; allowed: another "
                "train.output-dir, or this one when that has another name"
            )
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
    is_there = any((folder / name).exists() for name in (FACTS, COPY))
    return _read(folder) if is_there else None


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
    failure: Exception | None = None
    with tempfile.TemporaryDirectory() as place:
        for reading in (*_as_before(data, Path(place)), data):
            try:
                store, tokenizer = open_split(reading, "train")
            except (ValueError, FileNotFoundError) as error:
                failure = error
                continue
            if fingerprint_of(data, "train", store.checksum, tokenizer) == fingerprint:
                _warn(f"{missing}; {described(facts_of(tokenizer))} has the fingerprint it had")
                return tokenizer
            failure = ValueError(
                f"{missing}, and cannot be read with {described(facts_of(tokenizer))}: this or "
                f"{data.source} is not what it was when the run was trained"
            )
    if not isinstance(failure, FileNotFoundError):
        assert failure is not None
        raise failure
    # Then these alone say what the tokens are.
    if not _is_file(data.tokenizer) or _may_be_prepared(data.source):
        raise FileNotFoundError(f"{missing}, and it cannot be made anew: {failure}") from None
    tokenizer = open_tokenizer(data.tokenizer, eos_token=data.eos_token)
    _warn(f"{missing}; {tokenizer.name!r} is used unchecked, since its data is gone")
    return tokenizer


def _as_before(data: DataConfig, place: Path) -> list[DataConfig]:
    """The data as earlier versions read it, where that may differ: with folders of documents."""
    folders = {"source": data.source, "valid_source": data.valid_source}
    views = {
        name: _whole(folder, place / name)
        for name, folder in folders.items()
        if folder is not None and _is_documents(folder)
    }
    return [dataclasses.replace(data, **views)] if views else []


def _is_documents(source: str) -> bool:
    """Whether a source is a folder of documents, and not of prepared tokens."""
    folder = expanded_path(source)
    if source in NAMED or not folder.is_dir():
        return False
    kinds = {extension_of(file) for file in known_files(folder)}
    return bool(kinds) and not kinds & set(TOKENS)


def _whole(folder: str, view: Path) -> str:
    """A folder as earlier versions read it: every file of a known kind, whatever its name.

    Numbers for names keep the order, and tell of no split.
    """
    view.mkdir()
    for number, file in enumerate(known_files(expanded_path(folder))):
        (view / f"{number:09}{extension_of(file)}").symlink_to(file.resolve())
    return str(view)


def _places(data: DataConfig) -> list[str]:
    names = ["source"] if data.valid_source is None else ["source", "valid_source"]
    return [*names, "tokenizer"] if _is_file(data.tokenizer) else names


def _of_settings(data: DataConfig) -> Tokenizer | None:
    """The tokenizer of a config that says all of it; None where files have their part in it."""
    if data.source in SYNTHETIC:
        return synthetic.open_tokenizer(data)
    collected = data.tokenizer == "characters" and data.alphabet is None
    if collected or _is_file(data.tokenizer) or _may_be_prepared(data.source):
        return None
    return open_tokenizer(data.tokenizer, data.alphabet)


def _may_be_prepared(source: str) -> bool:
    """Whether a source is prepared tokens, with a tokenizer of their own, or cannot be seen."""
    try:
        return prepared_tokens(source) is not None
    except (FileNotFoundError, ValueError):
        return extension_of(source) not in DOCUMENTS


def _may_be_replaced(target: Path) -> bool:
    """Whether nothing is lost with what has the copy's name: only a copy, or nothing."""
    if not os.path.lexists(target):
        return True
    if target.is_symlink() or not target.is_dir():
        return False
    names = {path.name for path in target.iterdir()}
    return FACTS in names and names <= {FACTS, COPY}


def _read(folder: Path) -> Tokenizer:
    try:
        facts = read_object(folder / FACTS, keys=TOKENIZER_FACTS, optional={"sha256": str})
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
