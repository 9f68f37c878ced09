"""From a DataConfig to the tokens of one split."""

from __future__ import annotations

from collections.abc import Iterable

from multiscreen_jax.data import sources
from multiscreen_jax.data.config import DataConfig
from multiscreen_jax.data.packing import TokenStore, cut_store, join_documents, split_point
from multiscreen_jax.data.sources import Document
from multiscreen_jax.data.tokenizers import Tokenizer, open_tokenizer

BATCH_CHARACTERS = 1 << 22  # text encoded at once: enough to keep threads busy


def encode_documents(documents: Iterable[Document], tokenizer: Tokenizer):
    """Token arrays of documents, in order, encoded some megabytes of text at a time."""
    pending: list[Document] = []
    size = 0
    for document in documents:
        if tokenizer.name == "bytes" and "\0" in document.text:
            raise ValueError(
                f"{document.name}: has the NUL character at position "
                f"{document.text.index(chr(0))}, which ends documents with the bytes tokenizer; "
                "allowed: text without it"
            )
        pending.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield from _encode(pending, tokenizer)
            pending, size = [], 0
    yield from _encode(pending, tokenizer)


def _encode(documents: list[Document], tokenizer: Tokenizer):
    try:
        return tokenizer.encode_batch([document.text for document in documents])
    except ValueError:
        # Encode one by one to name the document that fails.
        for document in documents:
            try:
                tokenizer.encode(document.text)
            except ValueError as error:
                raise ValueError(f"{document.name}: {error}") from None
        raise


def open_store(config: DataConfig, split: str) -> tuple[TokenStore, Tokenizer]:
    """Tokens of a split, and the tokenizer that made them."""
    own_split = config.source == "sotu" or config.valid_source is not None
    source = config.source
    if split == "valid" and config.valid_source is not None:
        source = config.valid_source
    tokenizer = _open_tokenizer(config)
    documents = list(sources.read_documents(source, split, config.text_field))
    tokens = list(encode_documents(documents, tokenizer))
    assert tokenizer.eos_id is not None
    store = join_documents(source, tokens, tokenizer.eos_id, tokenizer.vocab_size)
    if own_split:
        return store, tokenizer
    cut = split_point(store.starts, len(store), config.valid_fraction)
    if split == "train":
        return cut_store(store, 0, cut), tokenizer
    return cut_store(store, cut, len(store)), tokenizer


def _open_tokenizer(config: DataConfig) -> Tokenizer:
    alphabet = config.alphabet
    if config.tokenizer == "characters" and alphabet is None:
        alphabet = collect_alphabet(config)
    return open_tokenizer(config.tokenizer, alphabet, config.eos_token)


def collect_alphabet(config: DataConfig) -> str:
    """Every character of both splits, in the order of code points."""
    found: set[str] = set()
    for split, source in (("train", config.source), ("valid", config.valid_source)):
        if source is None and config.source == "sotu":
            source = "sotu"
        if source is not None:
            for document in sources.read_documents(source, split, config.text_field):
                found.update(document.text)
    return "".join(sorted(found))
