"""From a DataConfig to the tokens of one split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from multiscreen_jax.data import sources
from multiscreen_jax.data.config import DataConfig
from multiscreen_jax.data.packing import TokenStore, cut_store, join_documents, split_point
from multiscreen_jax.data.sources import Document
from multiscreen_jax.data.token_files import open_own_tokenizer, open_token_file
from multiscreen_jax.data.tokenizers import Tokenizer, open_tokenizer

BATCH_CHARACTERS = 1 << 22  # text encoded at once: enough to keep threads busy


def encode_documents(
    documents: Iterable[Document], tokenizer: Tokenizer
) -> Iterator[tuple[Document, np.ndarray]]:
    """Documents with their tokens, in order, encoded some megabytes of text at a time.

    ValueError naming the document that the tokenizer cannot encode.
    """
    pending: list[Document] = []
    size = 0
    for document in documents:
        pending.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield from _encode(pending, tokenizer)
            pending, size = [], 0
    yield from _encode(pending, tokenizer)


def _encode(
    documents: list[Document], tokenizer: Tokenizer
) -> Iterator[tuple[Document, np.ndarray]]:
    for document in documents if tokenizer.name == "bytes" else ():
        if "\0" in document.text:
            raise ValueError(
                f"{document.name}: has the NUL character at position "
                f"{document.text.index(chr(0))}; allowed: text without it, since byte 0 ends "
                "documents with the bytes tokenizer"
            )
    try:
        encoded = tokenizer.encode_batch([document.text for document in documents])
    except ValueError:
        # Encode one by one to name the document that fails.
        for document in documents:
            try:
                tokenizer.encode(document.text)
            except ValueError as error:
                raise ValueError(f"{document.name}: {error}") from None
        raise
    return zip(documents, encoded, strict=True)


def open_tokens(source: str, split: str, text_field: str, tokenizer: Tokenizer) -> TokenStore:
    """Documents of a source, tokenised into memory; for a .bin file, the file mapped.

    ValueError for a .bin whose tokenizer is another one.
    """
    path = token_file(source)
    if path is not None:
        store, own = open_token_file(path)
        if own.fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f"{path} was made with tokenizer {own.name!r}, the other split uses "
                f"{tokenizer.name!r}; allowed: one tokenizer for both splits"
            )
        return store
    assert tokenizer.eos_id is not None
    documents = sources.read_documents(source, split, text_field)
    tokens = [tokens for _, tokens in encode_documents(documents, tokenizer)]
    return join_documents(source, tokens, tokenizer.eos_id, tokenizer.vocab_size)


def open_split(config: DataConfig, split: str) -> tuple[TokenStore, Tokenizer]:
    """Tokens of a split, and the tokenizer that made them."""
    tokenizer = find_tokenizer(config)
    source = config.source
    if split == "valid" and config.valid_source is not None:
        source = config.valid_source
    store = open_tokens(source, split, config.text_field, tokenizer)
    if config.source != "sotu" and config.valid_source is None:
        if split == "valid" and config.valid_fraction == 0:
            raise ValueError(
                f"{source} has no validation split: DataConfig.valid_fraction is 0; allowed: a "
                "fraction above 0, or a valid_source"
            )
        cut = split_point(store.starts, len(store), config.valid_fraction)
        store = cut_store(store, *((0, cut) if split == "train" else (cut, len(store))))
    return replace(store, name=f"{source} ({split} split)"), tokenizer


def token_file(source: str) -> Path | None:
    """The path of the token file that a source is, or None."""
    if source in sources.NAMED:
        return None
    first = sources.find_files(source)[0]
    return first if sources.extension_of(first) in sources.TOKENS else None


def find_tokenizer(config: DataConfig) -> Tokenizer:
    """The tokenizer of a config; that of the sidecar where the source is a token file."""
    path = token_file(config.source)
    if path is not None:
        return open_own_tokenizer(path)
    alphabet = config.alphabet
    if config.tokenizer == "characters" and alphabet is None:
        alphabet = collect_alphabet(config)
    return open_tokenizer(config.tokenizer, alphabet, config.eos_token)


def collect_alphabet(config: DataConfig) -> str:
    """Every character of both splits, in the order of code points."""
    read = [(config.source, "train")]
    if config.valid_source is not None:
        read.append((config.valid_source, "valid"))
    elif config.source == "sotu":
        read.append(("sotu", "valid"))
    found: set[str] = set()
    for source, split in read:
        if token_file(source) is None:
            for document in sources.read_documents(source, split, config.text_field):
                found.update(document.text)
    if not found:
        raise ValueError(f"{config.source}: the corpus is empty; no characters to make tokens of")
    return "".join(sorted(found))
