"""Tokenizers that need no file: bytes, characters of an alphabet, numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multiscreen_jax.data.tokenizer import Tokenizer, checked_ids


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes: 256 tokens. Byte 0, which text files do not use, ends a document.

    `decode` is the inverse of `encode` (byte 0 becomes the NUL character); bytes that are no
    UTF-8, as a model may sample them, become U+FFFD.
    """

    name = "bytes"
    vocab_size = 256
    eos_id = 0
    fingerprint = "bytes"

    def __init__(self):
        self.settings = {}
        self.byte_lengths = np.ones(256, np.int64)
        self.byte_lengths[0] = 0

    def encode(self, text: str) -> np.ndarray:
        """UTF-8 bytes of text, int32 [n]."""
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        # uint8 views: a corpus is held once, not four times over.
        return [np.frombuffer(text.encode("utf-8"), np.uint8) for text in texts]

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        return bytes(checked_ids(tokens, 256).astype(np.uint8)).decode("utf-8", errors="replace")


class CharacterTokenizer(Tokenizer):
    """One token per character of a fixed alphabet, in the alphabet's order.

    Args:
      alphabet: the characters, each once.
      ends_documents: whether one more token, the last, ends documents. Without it eos_id is None.
    """

    def __init__(self, alphabet: str, ends_documents: bool = True):
        self.alphabet = alphabet
        self.name = "characters"
        self.settings = {"alphabet": alphabet}
        self.eos_id = len(alphabet) if ends_documents else None
        self.vocab_size = len(alphabet) + int(ends_documents)
        self.fingerprint = f"characters:{ends_documents}:{alphabet}"
        lengths = [len(character.encode("utf-8")) for character in alphabet]
        self.byte_lengths = np.array(lengths + [0] * int(ends_documents), np.int64)
        self._points = np.array([ord(character) for character in alphabet], np.uint32)
        self._order = np.argsort(self._points)

    def encode(self, text: str) -> np.ndarray:
        """Index of every character in the alphabet, int32 [n]; ValueError for a foreign one."""
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        slots = np.searchsorted(self._points, points, sorter=self._order)
        ids = self._order[np.minimum(slots, len(self._order) - 1)]
        foreign = self._points[ids] != points
        if foreign.any():
            where = int(np.argmax(foreign))
            raise ValueError(
                f"character {text[where]!r} at position {where} is not in the alphabet of "
                f"{len(self.alphabet)} characters: {self.alphabet!r}"
            )
        return ids.astype(np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text; the end-of-document token becomes nothing."""
        ids = checked_ids(tokens, self.vocab_size)
        return "".join(self.alphabet[i] for i in ids if i != self.eos_id)


class NumberTokenizer(Tokenizer):
    """Tokens that stand for nothing: a text is their numbers, with spaces between them.

    Args:
      vocab_size: numbers are 0 to vocab_size - 1.
    """

    name = "numbers"
    eos_id = None

    def __init__(self, vocab_size: int):
        self.settings = {}
        self.vocab_size = vocab_size
        self.fingerprint = f"numbers:{vocab_size}"
        self.byte_lengths = np.zeros(vocab_size, np.int64)  # no text, so no bits per byte

    def encode(self, text: str) -> np.ndarray:
        """The numbers in a text, int32 [n]; ValueError for the first word that is none."""
        words = text.split()
        for word in words:
            if not (word.isascii() and word.isdecimal()):
                raise ValueError(f"{word!r} is not a number; allowed: numbers and spaces")
        # Of a number with many digits the length is enough to know that it is no token.
        numbers = [int(word) if len(word) < 19 else 10**18 for word in words]
        return checked_ids(numbers, self.vocab_size).astype(np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        return " ".join(map(str, checked_ids(tokens, self.vocab_size)))
