"""Which tokenizer.json files give every token a fixed number of bytes, and what pieces weigh."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from multiscreen_jax.data.gpt2_tokenizer import byte_alphabet
from multiscreen_jax.data.special_pieces import AFFIXES, BYTE_PIECE, core_of

Spec = dict[str, Any]
_NO_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that are in no text
_CUTTING = ("Split", "Punctuation", "Digits", "UnicodeScripts", "ByteLevel")


def parts_of(part: Spec | None) -> Iterator[Spec]:
    """A normalizer, pre-tokenizer or decoder without its sequences, in order."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for name in ("normalizers", "pretokenizers", "decoders"):
        for inner in part.get(name) or ():
            yield from parts_of(inner)


def has_byte_level(spec: Spec) -> bool:
    """Whether pieces are written in the byte alphabet."""
    return any(part["type"] == "ByteLevel" for part in parts_of(spec["pre_tokenizer"]))


def knows_all_bytes(spec: Spec) -> bool:
    """Whether a BPE model has a piece for each byte that a byte-level text can have."""
    if not has_byte_level(spec) or "merges" not in spec["model"]:
        return False
    pieces = spec["model"]["vocab"]
    return all(c in pieces for c, byte in byte_alphabet().items() if byte not in _NO_UTF8)


def has_fixed_lengths(spec: Spec) -> bool:
    """Whether the pieces of every text have, one after another, just the bytes of the text.

    So it is with byte-level BPE of all bytes, if nothing is normalized, added or removed before.
    """
    if not knows_all_bytes(spec) or any(parts_of(spec["normalizer"])):
        return False
    if any(spec["model"].get(affix) for affix in AFFIXES):
        return False
    cutters = list(parts_of(spec["pre_tokenizer"]))
    kept = all(
        part["type"] in _CUTTING
        and part.get("behavior") != "Removed"
        and not (part["type"] == "ByteLevel" and part.get("add_prefix_space", True))
        for part in cutters
    )
    once = sum(part["type"] == "ByteLevel" for part in cutters) == 1
    added = spec["added_tokens"]
    swallowed = any(
        not token["special"] and (token["lstrip"] or token["rstrip"]) for token in added
    )
    return kept and once and not swallowed


def piece_lengths(spec: Spec, vocabulary: dict[str, int], size: int) -> np.ndarray:
    """Bytes that each token's piece writes, at least 1, int64 [size].

    Of a byte piece one; of others those of the text without the signs of a word's begin and end.
    """
    byte_level, alphabet = has_byte_level(spec), byte_alphabet()
    added = {token["content"] for token in spec["added_tokens"]}
    lengths = np.ones(size, np.int64)
    for piece, token in vocabulary.items():
        if piece not in added:
            piece = core_of(spec["model"], piece).replace("▁", " ")
            if BYTE_PIECE.fullmatch(piece) or (byte_level and alphabet.keys() >= set(piece)):
                lengths[token] = 1 if BYTE_PIECE.fullmatch(piece) else len(piece)
                continue
        lengths[token] = len(piece.encode())
    return np.maximum(lengths, 1)


class LeftOut:
    """Counts what a BPE model without an unknown token leaves out: characters without a piece.

    Of byte-level text these are bytes.
    """

    def __init__(self, spec: Spec):
        model, alphabet = spec["model"], byte_alphabet()
        known = {core_of(model, piece) for piece in model["vocab"]}
        self._bytes = None
        if has_byte_level(spec):
            self._bytes = {byte for symbol, byte in alphabet.items() if symbol in known}
        self._characters = known

    def count(self, text: str) -> int:
        """Bytes of a normalized text that are left out, white space apart."""
        if self._bytes is not None:
            content = text.encode()
            return sum(content.count(byte) for byte in set(content) - self._bytes)
        lost = (c for c in set(text) - self._characters if not c.isspace())
        return sum(text.count(c) * len(c.encode()) for c in lost)
