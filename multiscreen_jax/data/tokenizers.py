"""Text to tokens and back: bytes, characters, GPT-2's byte pairs, any tokenizer.json.

`encode` adds no special tokens and treats their names in a text as ordinary text. It returns
int32 [n]; `decode` takes any sequence of integers and names the first that is no token.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from multiscreen_jax.data.config import import_package, neighbours

ASSETS = Path(__file__).parent / "assets"
GPT2_EOS = "<|endoftext|>"
# Python's spelling of GPT-2's pre-tokenisation: contractions, words, numbers, other signs, space.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LONGEST_CHARACTER = 4  # bytes of UTF-8
# Names under which tokenizer.json files list their end-of-document token, in order of preference.
EOS_NAMES = (GPT2_EOS, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|eos|>", "<|im_end|>")


class Tokenizer(ABC):
    """What every tokenizer offers.

    Attributes:
      name: what `open_tokenizer` and the sidecars of token files call it.
      settings: what the sidecar of a token file must hold beside the name.
      vocab_size: every token is smaller.
      eos_id: the token that ends a document, or None.
      fingerprint: equal for tokenizers that encode alike.
      byte_lengths: bytes of text behind each token, int64 [vocab_size], 0 for those that end
        documents; None where a token has no length of its own.
    """

    name: str
    settings: dict[str, str]
    vocab_size: int
    eos_id: int | None
    fingerprint: str
    byte_lengths: np.ndarray | None

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, int32 [n]."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokens of every text, in order; unsigned where that saves memory."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of tokens; ValueError naming the first that is no token."""

    def decode_stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """Text of tokens as they come, one part for each; joined, what `decode` gives of all.

        A character whose bytes are spread over several tokens appears when it is complete, and what
        is incomplete at the end as one more part. Text is decoded together with the tokens before
        it, because some tokenizers treat the first specially.
        """
        ids: list[int] = []
        context = shown = 0  # ids[context:shown] were given last, ids[shown:] not yet
        for token in tokens:
            ids.append(int(token))
            text = self.decode(ids[context:])
            if text.endswith("\ufffd") and len(ids) - shown < _LONGEST_CHARACTER:
                yield ""
                continue
            yield text[len(self.decode(ids[context:shown])) :]
            context, shown = shown, len(ids)
        if shown < len(ids):
            yield self.decode(ids[context:])[len(self.decode(ids[context:shown])) :]

    def token_texts(self, tokens: Sequence[int] | np.ndarray) -> list[str]:
        """The text that each token adds to those before it, "" inside a character."""
        parts, last = list(self.decode_stream(tokens)), len(tokens) - 1
        return [*parts[:last], "".join(parts[last:])] if parts else []


def checked_ids(tokens: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """Tokens as int64 [n]; ValueError naming the first that is not in the vocabulary."""
    ids = np.asarray(tokens, dtype=np.int64).reshape(-1)
    wrong = (ids < 0) | (ids >= vocab_size)
    if wrong.any():
        where = int(np.argmax(wrong))
        raise ValueError(
            f"token {where} is {ids[where]}; allowed: 0 to {vocab_size - 1} "
            f"(vocab_size {vocab_size})"
        )
    return ids


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


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level BPE files -> that byte.

    In the order GPT-2 numbers its first 256 tokens: printable bytes stand for themselves, the
    others follow as the characters from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return alphabet


def gpt2_merges() -> list[tuple[str, str]]:
    """GPT-2's 50,000 merges in order of rank, in the byte alphabet's characters."""
    lines = (ASSETS / "gpt2_merges.bpe").read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.split(" ")) for line in lines[1:] if line]
    return [(left, right) for left, right in pairs]


def gpt2_pieces() -> list[str]:
    """GPT-2's tokens in order, one byte-alphabet character per byte, without the end of text."""
    return list(byte_alphabet()) + [left + right for left, right in gpt2_merges()]


@cache
def _gpt2_encoding():
    tiktoken = import_package("tiktoken", "the gpt2 tokenizer")
    alphabet = byte_alphabet()
    pieces = gpt2_pieces()
    ranks = {bytes(alphabet[c] for c in piece): rank for rank, piece in enumerate(pieces)}
    return tiktoken.Encoding(
        "gpt2-from-merges",
        pat_str=GPT2_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={GPT2_EOS: len(ranks)},
    )


class Gpt2Tokenizer(Tokenizer):
    """GPT-2's byte pair encoding, 50257 tokens, rebuilt offline from its merges.

    `<|endoftext|>` (50256) ends a document; its name inside a text is ordinary text. Decoding
    inverts encoding for every text; bytes that are no UTF-8 become U+FFFD.
    """

    name = "gpt2"
    fingerprint = "gpt2"

    def __init__(self):
        self.settings = {}
        self._encoding = _gpt2_encoding()
        self.vocab_size = self._encoding.n_vocab
        self.eos_id = self._encoding.eot_token
        self.byte_lengths = np.array([len(piece) for piece in gpt2_pieces()] + [0], np.int64)

    def encode(self, text: str) -> np.ndarray:
        """Tokens of text, int32 [n]."""
        return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokens of every text, encoded by as many threads as there are processors."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self.encode, texts))

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text; the end-of-document token becomes nothing."""
        ids = checked_ids(tokens, self.vocab_size)
        return self._encoding.decode(ids[ids != self.eos_id].tolist(), errors="replace")


def _is_byte_level(decoder: dict | None) -> bool:
    if not decoder:
        return False
    inner = decoder.get("decoders", [])
    return decoder.get("type") == "ByteLevel" or any(map(_is_byte_level, inner))


class HuggingFaceTokenizer(Tokenizer):
    """A Hugging Face tokenizer.json.

    `byte_lengths` are exact for byte-level tokenizers (GPT-2's kind) and None for others, whose
    text is measured by decoding it.

    Args:
      path: the tokenizer.json.
      eos_token: the token that ends documents; None takes the first of EOS_NAMES it has.
    """

    def __init__(self, path: str | Path, eos_token: str | None = None):
        tokenizers = import_package("tokenizers", "a tokenizer.json")
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"tokenizer file {path} does not exist{neighbours(path)}")
        content = path.read_bytes()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # the library raises bare Exception, its message may be long
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} is not a readable tokenizer.json: {reason}") from None
        # Files may ask for truncation or padding, which would silently cut a corpus.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.name = str(path)
        self.settings = {} if eos_token is None else {"eos_token": eos_token}
        self.vocab_size = max(vocabulary.values()) + 1
        self.eos_id = self._find_eos(vocabulary, eos_token)
        self.fingerprint = f"{hashlib.sha256(content).hexdigest()}:{self.eos_id}"
        byte_level = _is_byte_level(json.loads(content).get("decoder"))
        self.byte_lengths = self._measure(vocabulary) if byte_level else None

    def _find_eos(self, vocabulary: dict[str, int], eos_token: str | None) -> int:
        names = EOS_NAMES if eos_token is None else (eos_token,)
        for name in names:
            if name in vocabulary:
                return vocabulary[name]
        wanted = "none of the usual names" if eos_token is None else f"no {eos_token!r}"
        special = [t.content for t in self._tokenizer.get_added_tokens_decoder().values()]
        raise ValueError(
            f"{self.name} has {wanted} as end-of-document token; allowed for eos_token: "
            f"a token of its vocabulary, such as {special[:8]}"
        )

    def _measure(self, vocabulary: dict[str, int]) -> np.ndarray:
        alphabet = byte_alphabet()
        lengths = np.zeros(self.vocab_size, np.int64)
        for piece, token in vocabulary.items():
            lengths[token] = len(piece) if set(piece) <= alphabet.keys() else len(piece.encode())
        for token, added in self._tokenizer.get_added_tokens_decoder().items():
            lengths[token] = 0 if added.special else len(added.content.encode())
        lengths[self.eos_id] = 0
        return lengths

    def encode(self, text: str) -> np.ndarray:
        """Tokens of text, int32 [n]."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text; special tokens, the end-of-document token among them, become nothing."""
        ids = checked_ids(tokens, self.vocab_size)
        return self._tokenizer.decode(ids[ids != self.eos_id].tolist())


def open_tokenizer(
    name: str, alphabet: str | None = None, eos_token: str | None = None
) -> Tokenizer:
    """The tokenizer a config or a token file names.

    Args:
      name: "bytes", "characters" (needs the alphabet), "gpt2", or a path of a tokenizer.json.
      alphabet: characters of a "characters" tokenizer.
      eos_token: for a tokenizer.json, the token that ends documents.
    """
    if not isinstance(name, str | os.PathLike):
        raise TypeError(
            f"tokenizer must be bytes, characters, gpt2 or a path of a tokenizer.json, got {name!r}"
        )
    if name == "bytes":
        return ByteTokenizer()
    if name == "gpt2":
        return Gpt2Tokenizer()
    if name == "characters":
        if alphabet is None:
            raise ValueError("the characters tokenizer needs its alphabet; given: None")
        return CharacterTokenizer(alphabet)
    return HuggingFaceTokenizer(os.fspath(name), eos_token)
