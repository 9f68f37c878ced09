"""A tokenizer.json in which the names of special tokens are ordinary text.

The tokenizers library can leave them to the model. But models match them once more, as pieces of
their vocabulary: "</s>" would become the token that ends documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

Spec = dict[str, Any]

AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # stands for a byte of what is no piece


def without_special_pieces(spec: Spec, names: Iterable[str]) -> Spec:
    """A tokenizer.json's content in which no text matches these pieces; their ids stay.

    They have other names there, which no text has, and no merge makes them: their names in a
    text are encoded in other pieces. A piece of one character or byte keeps its name, since there
    is no other for it, and the text would be lost.
    """
    model = spec["model"]
    pieces = _pieces(model)
    renamed = {
        name: f"\ufdd0special piece {number}\ufdd0"
        for number, name in enumerate(sorted(set(names)))
        if name not in pieces or not _stands_alone(model, name)
    }
    model = dict(model)
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed.get(p, p): number for p, number in model["vocab"].items()}
    else:
        model["vocab"] = [[renamed.get(p, p), score] for p, score in model["vocab"]]
    if "unk_token" in model:
        model["unk_token"] = renamed.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            merge for merge in model["merges"] if not _touches(merge, renamed, prefix)
        ]
    added = [
        {**token, "content": renamed.get(token["content"], token["content"])}
        for token in spec["added_tokens"]
    ]
    return {**spec, "model": model, "added_tokens": added}


def core_of(model: Spec, piece: str) -> str:
    """A piece without the signs that say where in a word it stands."""
    prefix, suffix = (model.get(affix) or "" for affix in AFFIXES)
    return piece.removeprefix(prefix).removesuffix(suffix)


def _pieces(model: Spec) -> set[str]:
    vocab = model["vocab"]
    return set(vocab) if isinstance(vocab, dict) else {piece for piece, _ in vocab}


def _stands_alone(model: Spec, piece: str) -> bool:
    """Whether a piece is one character, whatever says where in a word it stands, or one byte."""
    return len(core_of(model, piece)) <= 1 or BYTE_PIECE.fullmatch(piece) is not None


def _touches(merge: list[str], renamed: dict[str, str], prefix: str) -> bool:
    left, right = merge
    made = left + right.removeprefix(prefix)
    return not renamed.keys().isdisjoint((left, right, made))
