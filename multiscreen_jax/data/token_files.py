"""Token files: a flat array of tokens (.bin) and what one must know to read it (.json).

`NAME.bin` holds little-endian unsigned integers, nothing else, and is memory-mapped. Beside it
`NAME.json` holds

    dtype        "uint16", "uint32", or "int32" without negative ones
    vocab_size   every token is smaller
    tokenizer    "bytes", "characters", "gpt2", or a tokenizer.json, relative to this folder

and, as `finish_token_file` writes them, also

    alphabet, eos_token   settings of the tokenizer, where it has any
    tokenizer_checksum    16-byte BLAKE2b of the tokenizer's fingerprint, in hex
    num_tokens            must agree with the size of the file
    checksum              16-byte BLAKE2b of the .bin, in hex
    num_documents         must agree with the file of document starts, NAME.documents.npy (int64)
    documents_checksum    of those starts (see packing.checksum_of)
    bytes_checksum        of the bytes of text behind every token, NAME.bytes.npy (unsigned), which
                          are there for tokenizers without byte_lengths
    lost_share            share of the bytes of the corpus that the tokenizer lost as unknown

so that a .bin made by other tools needs only a three-line sidecar. Headers that other programs
write are known (see foreign_tokens): the dtype may then be left out, and the documents of a
Megatron index are those of packing "segments". Where a path of a token file is
asked for here, the folder of token shards (see token_shards) has its tokens.json as sidecar.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from multiscreen_jax.data.config import NAMED_TOKENIZERS, near_matches
from multiscreen_jax.data.foreign_tokens import (
    Header,
    document_starts,
    likely_reading,
    read_header,
    refuse_halves,
)
from multiscreen_jax.data.packing import CHUNK, ArrayStore, checksum_of
from multiscreen_jax.data.tokenizers import Tokenizer, open_tokenizer
from multiscreen_jax.json_files import check_keys, read_object
from multiscreen_jax.paths import refuse_lfs_pointer

DTYPES = ("uint16", "uint32", "int32")
REQUIRED = ("dtype", "vocab_size", "tokenizer")
SHARDS_SIDECAR = "tokens.json"
# Files up to this size are read whole when opened, to compare their checksum and their tokens
# with the sidecar. Of larger ones every row is still checked against vocab_size when it is read.
VERIFIED_BYTES = 1 << 28
SAMPLED_BYTES = 1 << 22  # of those that are larger, looked at for a wrong dtype
KEYS = {"vocab_size": int, "tokenizer": str}
OPTIONAL = {
    "alphabet": str | None,
    "eos_token": str | None,
    "tokenizer_checksum": str,
    "lost_share": float,
}


def sidecar_path(path: Path) -> Path:
    return path / SHARDS_SIDECAR if path.is_dir() else path.with_suffix(".json")


def documents_path(path: Path) -> Path:
    return path.with_suffix(".documents.npy")


def bytes_path(path: Path) -> Path:
    return path.with_suffix(".bytes.npy")


def file_checksum(path: Path) -> str:
    """16-byte BLAKE2b of a file, in hex; about 1 GB/s."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def finish_token_file(
    path: Path,
    dtype: np.dtype,
    starts: np.ndarray | None,
    tokenizer: Tokenizer,
    byte_counts: np.ndarray | None = None,
    lost_share: float = 0.0,
) -> dict[str, Any]:
    """Writes the sidecar of a complete .bin, document starts and byte counts; returns the sidecar.

    Byte counts are needed of a tokenizer without `byte_lengths`, as `encode_corpus` gives them and
    0 for the ends of documents; they are stored in the smallest integers that hold them.
    """
    facts: dict[str, Any] = {
        **tokenizer_facts(path.parent, dtype, tokenizer),
        "num_tokens": path.stat().st_size // dtype.itemsize,
        "checksum": file_checksum(path),
    }
    if starts is not None:
        facts["num_documents"] = len(starts)
        starts = np.asarray(starts, np.int64)
        np.save(documents_path(path), starts)
        facts["documents_checksum"] = checksum_of(starts, None)
    if byte_counts is not None:
        facts["bytes_checksum"] = _write_counts(bytes_path(path), byte_counts)
        facts["lost_share"] = lost_share
    sidecar = sidecar_path(path)
    partial = sidecar.with_suffix(".partial")
    partial.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    partial.replace(sidecar)
    return facts


def _write_counts(path: Path, counts: np.ndarray) -> str:
    """Writes byte counts chunk by chunk, as they may not fit into memory; returns the checksum."""
    chunks = [counts[first : first + CHUNK] for first in range(0, len(counts), CHUNK)]
    dtype = np.min_scalar_type(max(int(chunk.max()) for chunk in chunks))
    stored = np.lib.format.open_memmap(path, "w+", dtype, counts.shape)
    for number, chunk in enumerate(chunks):
        stored[number * CHUNK : number * CHUNK + len(chunk)] = chunk
    stored.flush()
    return checksum_of(stored, None)


def tokenizer_facts(folder: Path, dtype: np.dtype, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a sidecar in `folder` says of its tokens' dtype and tokenizer."""
    name = tokenizer.name
    if name not in NAMED_TOKENIZERS:
        name = os.path.relpath(name, folder)  # file and tokenizer may move together
    return {
        "dtype": dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": name,
        **tokenizer.settings,
        "tokenizer_checksum": _tokenizer_checksum(tokenizer),
    }


def _tokenizer_checksum(tokenizer: Tokenizer) -> str:
    fingerprint = tokenizer.fingerprint.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(fingerprint, digest_size=16).hexdigest()


def read_sidecar(path: Path) -> dict[str, Any]:
    """The checked facts beside a .bin, or in a folder of shards.

    ValueError or FileNotFoundError in one line.
    """
    return _read_sidecar(path, None if path.is_dir() else read_header(path))


def _read_sidecar(path: Path, header: Header | None) -> dict[str, Any]:
    sidecar = sidecar_path(path)
    if not sidecar.is_file():
        raise FileNotFoundError(
            f"{path} has no sidecar {sidecar.name}; a token file needs one with "
            f"{', '.join(REQUIRED)}"
        )
    refuse_lfs_pointer(sidecar)
    facts = read_object(sidecar)
    if header is not None:
        _check_dtype(header.file, header.dtype)
        facts.setdefault("dtype", header.dtype)
    missing = [key for key in REQUIRED if key not in facts]
    if missing:
        raise ValueError(f"{sidecar}: lacks {', '.join(missing)}; needed: {', '.join(REQUIRED)}")
    check_keys(facts, str(sidecar), KEYS, OPTIONAL)
    _check_dtype(sidecar, facts["dtype"])
    facts["dtype"] = _unsigned(facts["dtype"])
    if header is not None and facts["dtype"] != _unsigned(header.dtype):
        raise ValueError(
            f"{sidecar}: dtype is {facts['dtype']}, but the header in {header.file.name} says "
            f"{header.dtype}; allowed: what the header says"
        )
    if facts["vocab_size"] < 1:
        raise ValueError(
            f"{sidecar}: vocab_size is {facts['vocab_size']!r}; allowed: an integer >= 1"
        )
    if not 0 <= facts.get("lost_share", 0) <= 1:
        raise ValueError(
            f"{sidecar}: lost_share is {facts['lost_share']}; allowed: a number from 0 to 1"
        )
    return facts


def _check_dtype(file: Path, dtype: object) -> None:
    if dtype not in DTYPES:
        raise ValueError(
            f"{file}: dtype is {dtype!r}; allowed: {', '.join(DTYPES)}"
            f"{near_matches(str(dtype), DTYPES)}"
        )


def _unsigned(dtype: str) -> str:
    return "uint32" if dtype == "int32" else dtype  # a negative token is beyond every vocabulary


def open_own_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that a sidecar names."""
    return tokenizer_of(path, read_sidecar(path))


def tokenizer_of(path: Path, facts: dict[str, Any]) -> Tokenizer:
    """The same of a sidecar that was read; ValueError for another one than made the tokens."""
    name = facts["tokenizer"]
    if name.endswith(".json"):
        name = str(sidecar_path(path).parent / name)
    elif name not in NAMED_TOKENIZERS:
        raise ValueError(
            f"{sidecar_path(path)}: tokenizer is {name!r}; allowed: "
            f"{', '.join(NAMED_TOKENIZERS)}, or the path of a tokenizer.json"
            f"{near_matches(name, NAMED_TOKENIZERS)}"
        )
    tokenizer = open_tokenizer(name, facts.get("alphabet"), facts.get("eos_token"))
    if tokenizer.vocab_size != facts["vocab_size"]:
        raise ValueError(
            f"{sidecar_path(path)}: vocab_size is {facts['vocab_size']} but tokenizer "
            f"{facts['tokenizer']!r} has {tokenizer.vocab_size} tokens"
        )
    checksum = _tokenizer_checksum(tokenizer)
    if facts.get("tokenizer_checksum", checksum) != checksum:
        raise ValueError(
            f"{sidecar_path(path)}: tokenizer {name} is not the one that made the tokens; allowed: "
            "the one that did, or tokens made anew"
        )
    return tokenizer


def open_token_file(path: Path, segments: bool = False) -> tuple[ArrayStore, Tokenizer]:
    """Maps a .bin and opens the tokenizer its sidecar names.

    Documents are those of NAME.documents.npy; or, where `segments` are asked for, of a Megatron
    index. ValueError or FileNotFoundError, in one line, if file, sidecar, header and document
    starts disagree.
    """
    refuse_lfs_pointer(path)
    header = read_header(path)
    facts = _read_sidecar(path, header)
    tokenizer = tokenizer_of(path, facts)
    tokens = _map_tokens(path, facts, 0 if header is None else header.offset)
    starts = _read_starts(path, facts, len(tokens))
    # A stream stays what it was before indices were read, and is held out by tokens.
    if segments and starts is None and header is not None and header.sequences:
        starts = document_starts(header, len(tokens))
    checksum = facts.get("checksum") or _sampled_checksum(tokens)
    if starts is not None:
        of_starts = checksum_of(starts, None)
        if facts.get("documents_checksum", of_starts) != of_starts:
            raise ValueError(
                f"{documents_path(path)} is damaged: its checksum is not the one in "
                f"{sidecar_path(path).name}"
            )
        checksum = f"{checksum}/{of_starts}"
    store = ArrayStore(
        name=str(path),
        tokens=tokens,
        starts=starts,
        vocab_size=facts["vocab_size"],
        checksum=checksum,
        byte_counts=_read_counts(path, facts, len(tokens)),
        lost_share=facts.get("lost_share", 0.0),
    )
    whole = tokens.nbytes <= VERIFIED_BYTES
    if whole and "checksum" in facts and file_checksum(path) != facts["checksum"]:
        raise ValueError(
            f"{path} is damaged: its checksum is not the one in {sidecar_path(path).name}"
        )
    _check_tokens(store, tokens, whole, counted="num_tokens" in facts)
    return store, tokenizer


def _check_tokens(store: ArrayStore, tokens: np.ndarray, whole: bool, counted: bool) -> None:
    """Compares tokens with the vocabulary, and says so where another dtype would fit."""
    sample = tokens[: min(SAMPLED_BYTES, VERIFIED_BYTES) // tokens.itemsize]
    try:
        store.check_ids(tokens if whole else sample, 0)
    except ValueError as error:
        raise ValueError(f"{error}{likely_reading(sample, store.vocab_size)}") from None
    if not counted:
        refuse_halves(Path(store.name), sample)


def _map_tokens(path: Path, facts: dict[str, Any], offset: int) -> np.ndarray:
    dtype = np.dtype(facts["dtype"]).newbyteorder("<")
    size = path.stat().st_size - offset
    if size % dtype.itemsize:
        hint = "; they are of uint16 tokens" if size % 2 == 0 else ""
        raise ValueError(
            f"{path} is damaged: its {size} bytes are no whole number of {facts['dtype']} "
            f"tokens{hint}"
        )
    if size == 0:
        raise ValueError(f"{path} is empty; at least one row of tokens is needed")
    count = size // dtype.itemsize
    if facts.get("num_tokens", count) != count:
        raise ValueError(
            f"{path} is damaged: it has {count} tokens but {sidecar_path(path).name} says "
            f"{facts['num_tokens']}"
        )
    return np.memmap(path, dtype, mode="r", offset=offset)


def _read_starts(path: Path, facts: dict[str, Any], num_tokens: int) -> np.ndarray | None:
    if "num_documents" not in facts:
        return None
    file = documents_path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} has no {file.name}, though its sidecar counts {facts['num_documents']} "
            "documents"
        )
    starts = _map_array(file)
    if starts.dtype != np.int64:
        raise ValueError(f"{file} holds {starts.dtype}; allowed: document starts, int64")
    if starts.ndim != 1 or len(starts) != facts["num_documents"] or len(starts) == 0:
        raise ValueError(
            f"{file} has {starts.size} document starts but {sidecar_path(path).name} says "
            f"{facts['num_documents']}"
        )
    if starts[0] != 0 or starts[-1] >= num_tokens or np.any(np.diff(starts) <= 0):
        raise ValueError(
            f"{file} is damaged: document starts must ascend from 0 to below {num_tokens}"
        )
    return starts


def _read_counts(path: Path, facts: dict[str, Any], num_tokens: int) -> np.ndarray | None:
    if "bytes_checksum" not in facts:
        return None
    file = bytes_path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no {file.name}, though its sidecar has its checksum")
    counts = _map_array(file)
    if counts.shape != (num_tokens,) or counts.dtype.kind != "u":
        raise ValueError(
            f"{file} is {counts.dtype} {list(counts.shape)}; allowed: unsigned [{num_tokens}]"
        )
    if counts.nbytes <= VERIFIED_BYTES and checksum_of(counts, None) != facts["bytes_checksum"]:
        raise ValueError(
            f"{file} is damaged: its checksum is not the one in {sidecar_path(path).name}"
        )
    return counts


def _map_array(file: Path) -> np.ndarray:
    refuse_lfs_pointer(file)
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file}: not a numpy array: {str(error).splitlines()[0]}") from None


def _sampled_checksum(tokens: np.ndarray) -> str:
    # A foreign file without a checksum is told apart by its length and its two ends.
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{tokens.dtype.str}:{len(tokens)}".encode())
    for piece in (tokens[: 1 << 19], tokens[-(1 << 19) :]):
        digest.update(np.ascontiguousarray(piece).data)
    return digest.hexdigest()
