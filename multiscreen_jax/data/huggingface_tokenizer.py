"""A Hugging Face tokenizer.json as one of our tokenizers."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from multiscreen_jax.data.byte_counts import TextBytes, count_bytes, narrow
from multiscreen_jax.data.byte_level import (
    LeftOut,
    has_fixed_lengths,
    knows_all_bytes,
    parts_of,
    piece_lengths,
)
from multiscreen_jax.data.config import import_package, neighbours
from multiscreen_jax.data.gpt2_tokenizer import GPT2_EOS
from multiscreen_jax.data.special_pieces import BYTE_PIECE, without_special_pieces
from multiscreen_jax.data.tokenizer import Encoded, Tokenizer, checked_ids, library_errors
from multiscreen_jax.paths import expanded_path, refuse_lfs_pointer

# Names under which tokenizer.json files list their end-of-document token, in order of preference.
EOS_NAMES = (GPT2_EOS, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|eos|>", "<|im_end|>")
MOST_TOKENS = 1 << 24  # tables of the vocabulary stay small; known ones have some 2^18 tokens


class HuggingFaceTokenizer(Tokenizer):
    """A Hugging Face tokenizer.json.

    `byte_lengths` are known for byte-level tokenizers that change no text (GPT-2's kind) and None
    for others, whose bytes are counted where their tokens lie in the text. Names of special tokens
    are ordinary text; what would give a special token all the same is refused.

    Args:
      path: the tokenizer.json.
      eos_token: the token that ends documents; None takes the first of EOS_NAMES it has.
    """

    def __init__(self, path: str | Path, eos_token: str | None = None):
        path = expanded_path(path, "tokenizer")
        if not path.is_file():
            raise FileNotFoundError(f"tokenizer file {path} does not exist{neighbours(path)}")
        refuse_lfs_pointer(path)
        content = path.read_bytes()
        self.name = str(path)
        self.settings = {} if eos_token is None else {"eos_token": eos_token}
        given = _parse(content, path)
        vocabulary = given.get_vocab(with_added_tokens=True)
        self.vocab_size = self._checked_size(vocabulary)
        spec = json.loads(given.to_str())  # with all its fields, whichever the file has
        special = {token["content"] for token in spec["added_tokens"] if token["special"]}
        end = self._find_eos(vocabulary, eos_token, special)
        self.eos_id = vocabulary[end]
        self.fingerprint = f"{hashlib.sha256(content).hexdigest()}:{self.eos_id}"
        self._names = {token: piece for piece, token in vocabulary.items()}
        self._special = {vocabulary[name] for name in special}
        self._unknown = _unknown_id(spec["model"], vocabulary)
        # What is unknown is lost, and counted; all else that is special is no part of a text.
        self._forbidden = np.zeros(self.vocab_size, bool)
        self._forbidden[[*(self._special - {self._unknown}), self.eos_id]] = True
        self._tokenizer = _parse(_for_corpora(spec, {*special, end}), path)
        self._tokenizer.encode_special_tokens = True
        self._lengths = piece_lengths(spec, vocabulary, self.vocab_size)
        fixed = np.where(self._forbidden, 0, self._lengths)
        self.byte_lengths = fixed if has_fixed_lengths(spec) else None
        drops = "merges" in spec["model"] and self._unknown is None and not knows_all_bytes(spec)
        self._left_out = LeftOut(spec) if drops else None
        self._bytes = _byte_pieces(vocabulary) if _falls_back(spec) else {}
        self.unsettled = _longest_rewritten(spec)

    def _checked_size(self, vocabulary: dict[str, int]) -> int:
        if not vocabulary:
            raise ValueError(f"{self.name} has no tokens; allowed: a vocabulary of at least one")
        piece = max(vocabulary, key=vocabulary.__getitem__)
        if vocabulary[piece] >= MOST_TOKENS:
            raise ValueError(
                f"{self.name}: token {piece!r} is number {vocabulary[piece]}; allowed: 0 to "
                f"{MOST_TOKENS - 1}"
            )
        return vocabulary[piece] + 1

    def _find_eos(
        self, vocabulary: dict[str, int], eos_token: str | None, special: set[str]
    ) -> str:
        names = EOS_NAMES if eos_token is None else (eos_token,)
        for name in names:
            if name in vocabulary:
                return name
        wanted = "none of the usual names" if eos_token is None else f"no {eos_token!r}"
        listed = sorted(special, key=vocabulary.__getitem__)[:8]
        raise ValueError(
            f"{self.name} has {wanted} as end-of-document token; allowed for eos_token: "
            f"a token of its vocabulary, such as {listed}"
        )

    def encode(self, text: str) -> np.ndarray:
        """Tokens of text, int32 [n]; ValueError where it gives a special token all the same."""
        with self._library():
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return self._checked(text, encoding)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        with self._library():
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return list(map(self._checked, texts, encodings))

    def encode_corpus(self, texts: Sequence[str]) -> list[Encoded]:
        if self.byte_lengths is not None:
            return super().encode_corpus(texts)
        with self._library():
            encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return list(map(self._count, texts, encodings))

    def _library(self) -> AbstractContextManager[None]:
        return library_errors(f"{self.name} cannot encode this text")

    def _checked(self, text: str, encoding: Any) -> np.ndarray:
        """The tokens of a text's encoding; ValueError naming the first that is special."""
        ids = np.array(encoding.ids, np.int32)
        if not self._forbidden[ids].any():
            return ids
        # Once more, since fast encodings do not know where their tokens lie.
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        where = int(np.argmax(self._forbidden[ids]))
        (first, last), token = encoding.offsets[where], int(ids[where])
        raise ValueError(
            f"{text[first:last]!r} at position {first} would become the special token "
            f"{self._names[token]!r} ({token}) of {self.name}; allowed: text without it"
        )

    def _count(self, text: str, encoding: Any) -> Encoded:
        ids = self._checked(text, encoding)
        spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        size = TextBytes(text)
        unknown = ids == (-1 if self._unknown is None else self._unknown)
        # An unknown token has no piece of its own: it weighs what it covers.
        covered = np.maximum(size.before(spans[:, 1]) - size.before(spans[:, 0]), 1)
        counts = count_bytes(size, spans, np.where(unknown, covered, self._lengths[ids]))
        if self._left_out is not None:
            normalizer = self._tokenizer.normalizer
            lost = self._left_out.count(normalizer.normalize_str(text) if normalizer else text)
        else:
            lost = int(np.minimum(covered, counts)[unknown].sum())
        return Encoded(ids, narrow(counts), lost)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text; special tokens, the end-of-document token among them, become nothing.

        Of byte tokens that are no UTF-8 only those that belong to no character become U+FFFD.
        """
        ids = checked_ids(tokens, self.vocab_size)
        ids = ids[ids != self.eos_id].tolist()
        if self._bytes.keys().isdisjoint(ids):
            return self._tokenizer.decode(ids)
        # The library would give up whole runs of byte tokens for one that is wrong.
        ids = [i for i in ids if i in self._names and i not in self._special]
        pieces = []
        for are_bytes, run in itertools.groupby(ids, key=self._bytes.__contains__):
            if are_bytes:
                pieces.append(bytes(self._bytes[i] for i in run).decode("utf-8", "replace"))
            else:
                pieces.extend(self._names[i] for i in run)
        return self._tokenizer.decoder.decode(pieces)


def _parse(content: bytes, path: Path) -> Any:
    tokenizers = import_package("tokenizers", "a tokenizer.json")
    with library_errors(f"{path} is not a readable tokenizer.json"):
        tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    # Files may ask for truncation or padding, which would silently cut a corpus.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _for_corpora(spec: dict[str, Any], special: set[str]) -> bytes:
    """A tokenizer.json that encodes a text always alike, and without special tokens."""
    spec = without_special_pieces({**spec, "post_processor": None}, special)
    if "dropout" in spec["model"]:
        spec["model"]["dropout"] = None
    return json.dumps(spec).encode()


def _unknown_id(model: dict[str, Any], vocabulary: dict[str, int]) -> int | None:
    if model.get("unk_token") is not None:
        return vocabulary.get(model["unk_token"])
    return model.get("unk_id")


def _falls_back(spec: dict[str, Any]) -> bool:
    return any(part["type"] == "ByteFallback" for part in parts_of(spec["decoder"]))


def _longest_rewritten(spec: dict[str, Any]) -> int:
    """Most characters of a text, over the ends of tokens, that a decoder puts others in place of.

    What a regular expression matches may have any length; those of clean-up are short.
    """
    decoders = list(parts_of(spec["decoder"]))
    fused = next((n for n, part in enumerate(decoders) if part["type"] == "Fuse"), len(decoders))
    rewriting = [part for part in decoders[fused:] if part["type"] == "Replace"]
    patterns = [(part["pattern"].get("String"), part["content"]) for part in rewriting]
    spans = [16 if text is None else max(len(text), len(by)) for text, by in patterns]
    return sum(length for length in spans if length > 1)


def _byte_pieces(vocabulary: dict[str, int]) -> dict[int, int]:
    """Token -> the byte that its piece stands for."""
    found = {token: BYTE_PIECE.fullmatch(piece) for piece, token in vocabulary.items()}
    return {token: int(match[1], 16) for token, match in found.items() if match}
