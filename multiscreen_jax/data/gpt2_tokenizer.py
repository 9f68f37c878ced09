"""GPT-2's byte pair encoding, rebuilt offline from its merges, and the alphabet of its bytes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from multiscreen_jax.data.config import import_package
from multiscreen_jax.data.tokenizer import Tokenizer, checked_ids, library_errors

ASSETS = Path(__file__).parent / "assets"
GPT2_EOS = "<|endoftext|>"
# GPT-2's pre-tokenisation: contractions, words, numbers, other signs, space. Possessive (++) where
# giving characters back could not help, so that a match costs no stack.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# White space as the pattern's \s has it, which is not Python's.
_WHITE_SPACE = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
# Between words, \s+(?!\S) gives back one character of a run; its stack ends below a million.
_LONGEST_RUN = 1 << 12


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


def parts_between_runs(text: str, longest: int = _LONGEST_RUN) -> Iterator[str]:
    """A text in parts that the pattern cuts as it cuts the whole.

    A run of more than `longest` white-space characters is a part of its own, less the last one
    where a word follows: the pattern makes one pre-token of just these.
    """
    begin = 0
    for run in re.finditer(f"{_WHITE_SPACE}{{{longest + 1},}}", text):
        end = run.end() - (run.end() < len(text))
        if run.start() > begin:
            yield text[begin : run.start()]
        yield text[run.start() : end]
        begin = end
    yield text[begin:]


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
        with library_errors("tiktoken cannot encode this text"):
            parts = [
                self._encoding.encode_to_numpy(part, disallowed_special=())
                for part in parts_between_runs(text)
            ]
        return np.concatenate(parts).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokens of every text, encoded by as many threads as there are processors."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self.encode, texts))

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text; the end-of-document token becomes nothing."""
        ids = checked_ids(tokens, self.vocab_size)
        return self._encoding.decode(ids[ids != self.eos_id].tolist(), errors="replace")
