"""Text to tokens and back: bytes, characters, GPT-2's byte pairs, any tokenizer.json.

`encode` adds no special tokens and treats their names in a text as ordinary text. It returns
int32 [n]; `decode` takes any sequence of integers and names the first that is no token.
"""

from __future__ import annotations

import os

from multiscreen_jax.data.gpt2_tokenizer import (
    GPT2_EOS,
    GPT2_PATTERN,
    Gpt2Tokenizer,
    byte_alphabet,
    gpt2_merges,
    gpt2_pieces,
)
from multiscreen_jax.data.huggingface_tokenizer import EOS_NAMES, HuggingFaceTokenizer
from multiscreen_jax.data.named_tokenizers import (
    ByteTokenizer,
    CharacterTokenizer,
    NumberTokenizer,
)
from multiscreen_jax.data.tokenizer import Encoded, Tokenizer, checked_ids

__all__ = [
    "EOS_NAMES",
    "GPT2_EOS",
    "GPT2_PATTERN",
    "ByteTokenizer",
    "CharacterTokenizer",
    "Encoded",
    "Gpt2Tokenizer",
    "HuggingFaceTokenizer",
    "NumberTokenizer",
    "Tokenizer",
    "byte_alphabet",
    "checked_ids",
    "gpt2_merges",
    "gpt2_pieces",
    "open_tokenizer",
]


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
