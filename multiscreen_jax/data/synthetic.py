"""The sources that are computed, not read: their tokenizers and rows."""

from __future__ import annotations

from multiscreen_jax.data.abcdigits import ALPHABET, AbcDigitsSource
from multiscreen_jax.data.config import DataConfig
from multiscreen_jax.data.mqar import MqarSource
from multiscreen_jax.data.tokenizers import (
    ByteTokenizer,
    CharacterTokenizer,
    NumberTokenizer,
    Tokenizer,
)


def open_tokenizer(config: DataConfig) -> Tokenizer:
    """The tokenizer of a config whose source is synthetic."""
    if config.source == "mqar":
        return NumberTokenizer(config.mqar.vocab_size)
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    return CharacterTokenizer(ALPHABET, ends_documents=False)


def open_rows(config: DataConfig, tokenizer: Tokenizer, split: str) -> AbcDigitsSource | MqarSource:
    """The rows of a split of such a config."""
    length, seed, batch_size = config.sequence_length, config.seed, config.batch_size
    if config.source == "mqar":
        return MqarSource(config.mqar, length, seed, split, batch_size)
    return AbcDigitsSource(config.abcdigits, tokenizer, length, seed, split, batch_size)
