"""Token files of other programs: what their headers say, and widths that cannot be right.

llm.c begins a .bin with 256 int32: a number that says the width of the tokens, a version, how many
tokens follow, zeros. Megatron leaves the .bin bare and describes it in a .idx beside it: the word
MMIDIDX, a version, a code of the dtype, how many sequences and document bounds there are. Three
lists follow: the length of every sequence (int32), its place in bytes (int64), and the sequences
that documents begin at, with the end (int64).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multiscreen_jax.paths import refuse_lfs_pointer

LLM_C_BYTES = 1024
LLM_C_TOKENS = {20240520: "uint16", 20240801: "uint32"}
LLM_C_OTHERS = {20240522: "multiple-choice questions", 20240326: "model weights"}
MEGATRON = b"MMIDIDX\0\0"
MEGATRON_HEADER = struct.Struct("<9sQBQQ")
MEGATRON_DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float64",
    7: "float32",
    8: "uint16",
}
NUMPY = b"\x93NUMPY"
SMALL = 15  # the upper half of a 32-bit token, in vocabularies of up to a million
LEAST_SAMPLE = 64  # tokens below which halves say nothing


@dataclass(frozen=True)
class Header:
    """Facts that another program states of its tokens.

    Attributes:
      file: where it says so.
      dtype: as it says.
      offset: bytes of the .bin before the first token.
      sequences, bounds: what a Megatron index counts; 0 of llm.c.
    """

    file: Path
    dtype: str
    offset: int = 0
    sequences: int = 0
    bounds: int = 0


def read_header(path: Path) -> Header | None:
    """The header in a .bin or in the .idx beside it, or None; ValueError if it cannot be right."""
    return _llm_c(path) or _megatron(path)


def _llm_c(path: Path) -> Header | None:
    with path.open("rb") as file:
        start = file.read(LLM_C_BYTES)
    if start.startswith(NUMPY):
        raise ValueError(f"{path} is a .npy file of numpy; allowed: tokens alone (array.tofile)")
    if len(start) < LLM_C_BYTES:
        return None
    magic, version, count, *rest = np.frombuffer(start, "<i4").tolist()
    if magic not in LLM_C_TOKENS | LLM_C_OTHERS or not 0 < version < 100 or any(rest[8:]):
        return None
    if magic in LLM_C_OTHERS:
        raise ValueError(f"{path} has the llm.c header of {LLM_C_OTHERS[magic]}; allowed: tokens")
    dtype = LLM_C_TOKENS[magic]
    held = (path.stat().st_size - LLM_C_BYTES) / np.dtype(dtype).itemsize
    if held != count:
        raise ValueError(
            f"{path} is damaged: its llm.c header counts {count} {dtype} tokens, {held:g} follow"
        )
    return Header(path, dtype, LLM_C_BYTES)


def _megatron(path: Path) -> Header | None:
    index = path.with_suffix(".idx")
    if not index.is_file():
        return None
    refuse_lfs_pointer(index)
    with index.open("rb") as file:
        start = file.read(MEGATRON_HEADER.size)
    if not start.startswith(MEGATRON):
        return None
    if len(start) < MEGATRON_HEADER.size:
        raise ValueError(f"{index} is damaged: it ends inside its header")
    _, version, code, sequences, bounds = MEGATRON_HEADER.unpack(start)
    if version != 1:
        raise ValueError(f"{index} is of version {version}; allowed: version 1")
    dtype = MEGATRON_DTYPES.get(code, f"code {code}")
    needed = MEGATRON_HEADER.size + 12 * sequences + 8 * bounds
    size = index.stat().st_size
    if size not in (needed, needed + sequences):  # some have a mode, one byte, for every sequence
        raise ValueError(
            f"{index} is damaged: {sequences} sequences and {bounds} document bounds need "
            f"{needed} bytes, it has {size}"
        )
    return Header(index, dtype, sequences=sequences, bounds=bounds)


def document_starts(header: Header, num_tokens: int) -> np.ndarray:
    """Where the documents of a Megatron index start, int64; empty documents are left out."""

    def part(dtype: str, count: int, before: int) -> np.ndarray:
        place = MEGATRON_HEADER.size + before
        return np.fromfile(header.file, dtype, count, offset=place).astype(np.int64)

    lengths = part("<i4", header.sequences, 0)
    places = part("<i8", header.sequences, 4 * header.sequences)
    bounds = part("<i8", header.bounds, 12 * header.sequences)
    ends = np.cumsum(lengths)
    begins = ends - lengths
    if np.any(lengths < 0) or not np.array_equal(places, begins * np.dtype(header.dtype).itemsize):
        raise ValueError(
            f"{header.file}: its sequences do not follow each other; allowed: in order"
        )
    total = int(ends[-1]) if len(ends) else 0
    if total != num_tokens:
        raise ValueError(f"{header.file} counts {total} tokens, but the .bin has {num_tokens}")
    ordered = len(bounds) > 1 and bounds[0] == 0 and bounds[-1] == len(lengths)
    if not ordered or np.any(np.diff(bounds) < 0):
        raise ValueError(
            f"{header.file} is damaged: document bounds must ascend from 0 to {len(lengths)}"
        )
    starts = np.unique(np.append(begins, total)[bounds[:-1]])
    return starts[starts < total]


def likely_reading(tokens: np.ndarray, vocab_size: int) -> str:
    """A hint to end a message with, where tokens beyond the vocabulary have a likely reason."""
    if not len(tokens) or int(tokens.max()) < vocab_size:
        return ""
    narrow = tokens.dtype.itemsize == 2
    other = (tokens[: len(tokens) // 2 * 2] if narrow else tokens).view("<u4" if narrow else "<u2")
    if len(other) and int(other.max()) < vocab_size:
        return f"; read as {other.dtype.name} every token is allowed: say so in the sidecar"
    if int(tokens.byteswap().max()) < vocab_size:
        return "; read as big-endian every token is allowed: write the file as little-endian"
    if not narrow and int(tokens.max()) >= 1 << 31:
        first = int(tokens[np.argmax(tokens >= 1 << 31)])
        return f"; read as int32 one is {first - (1 << 32)}, and no token is negative"
    return ""


def refuse_halves(path: Path, tokens: np.ndarray) -> None:
    """ValueError where every second number is so small that it must be half of a wider token."""
    if len(tokens) < LEAST_SAMPLE:
        return
    bits = 8 * tokens.dtype.itemsize
    most = SMALL if bits == 16 else 0
    tops = [int(tokens[first::2].max()) for first in (0, 1)]
    if min(tops) > most or max(tops) <= most:
        return
    raise ValueError(
        f"{path}: of every two uint{bits} tokens one is at most {min(tops)}, as in a file of "
        f"uint{2 * bits} or int{2 * bits}; allowed: the right dtype in the sidecar, or, if this "
        "is right, num_tokens there too"
    )
