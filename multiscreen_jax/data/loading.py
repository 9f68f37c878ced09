"""From a DataConfig to the tokens of one split."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from multiscreen_jax.data import sources
from multiscreen_jax.data.config import DataConfig
from multiscreen_jax.data.kinds import TOKENS, extension_of
from multiscreen_jax.data.packing import TokenStore, join_documents
from multiscreen_jax.data.sources import Document, choose_files
from multiscreen_jax.data.token_files import SHARDS_SIDECAR, open_own_tokenizer, open_token_file
from multiscreen_jax.data.token_shards import PLAN, open_token_shards
from multiscreen_jax.data.tokenizers import Encoded, Tokenizer, open_tokenizer
from multiscreen_jax.paths import expanded_path

BATCH_CHARACTERS = 1 << 22  # text encoded at once: enough to keep threads busy


def encode_documents(
    documents: Iterable[Document], tokenizer: Tokenizer
) -> Iterator[tuple[Document, Encoded]]:
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


def _encode(documents: list[Document], tokenizer: Tokenizer) -> Iterator[tuple[Document, Encoded]]:
    for document in documents:
        _refuse_nul(document, tokenizer)
    try:
        encoded = tokenizer.encode_corpus([document.text for document in documents])
    except ValueError:
        for document in documents:  # one by one, to name the document that fails
            encode_document(document, tokenizer)
        raise
    return zip(documents, encoded, strict=True)


def encode_document(document: Document, tokenizer: Tokenizer) -> Encoded:
    """Tokens of one document; ValueError naming it if it cannot be encoded."""
    _refuse_nul(document, tokenizer)
    try:
        return tokenizer.encode_corpus([document.text])[0]
    except ValueError as error:
        raise ValueError(f"{document.name}: {error}") from None


def _refuse_nul(document: Document, tokenizer: Tokenizer) -> None:
    if tokenizer.name == "bytes" and "\0" in document.text:
        raise ValueError(
            f"{document.name}: has the NUL character at position "
            f"{document.text.index(chr(0))}; allowed: text without it, since byte 0 ends "
            "documents with the bytes tokenizer"
        )


def open_tokens(
    source: str, split: str, text_field: str, tokenizer: Tokenizer, segments: bool = False
) -> TokenStore:
    """Documents of a source, tokenised into memory; a .bin file mapped; token shards opened.

    ValueError for prepared tokens whose tokenizer is another one.
    """
    path = prepared_tokens(source, split)
    if path is not None:
        shards = path.is_dir()
        store, own = open_token_shards(path) if shards else open_token_file(path, segments)
        if own.fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f"{path} was made with tokenizer {own.name!r}, the other split uses "
                f"{tokenizer.name!r}; allowed: one tokenizer for both splits"
            )
        return store
    assert tokenizer.eos_id is not None
    documents = sources.read_documents(source, split, text_field)
    tokens, counts, lost = [], [], 0
    for _, encoded in encode_documents(documents, tokenizer):
        tokens.append(encoded.tokens)
        counts.append(encoded.byte_counts)
        lost += encoded.lost_bytes
    if tokenizer.byte_lengths is not None:
        return join_documents(source, tokens, tokenizer.eos_id, tokenizer.vocab_size)
    share = lost / max(1, sum(int(count.sum()) for count in counts))
    return join_documents(source, tokens, tokenizer.eos_id, tokenizer.vocab_size, counts, share)


def open_split(config: DataConfig, split: str) -> tuple[TokenStore, Tokenizer]:
    """Tokens of a split, and the tokenizer that made them."""
    tokenizer = find_tokenizer(config, split)
    own = validation_source(config)
    source = config.source if split == "train" or own is None else own
    read = "train" if own is None else split
    segments = config.packing == "segments"
    store = open_tokens(source, read, config.text_field, tokenizer, segments)
    if own is None:
        if split == "valid" and config.valid_fraction == 0:
            raise ValueError(
                f"{source} has no validation split: DataConfig.valid_fraction is 0; allowed: a "
                "fraction above 0, or a valid_source"
            )
        cut = store.split_point(config.valid_fraction)
        store = store.cut(0, cut) if split == "train" else store.cut(cut, len(store))
    if split == "valid" and tokenizer.byte_lengths is None and not store.counts_bytes:
        warnings.warn(
            f"{source} does not hold the bytes of text behind its tokens, and {tokenizer.name} "
            "has no fixed ones, so there are no bits per byte; prepare it again to have them",
            stacklevel=2,
        )
    return replace(store, name=f"{source} ({split} split)"), tokenizer


def validation_source(config: DataConfig) -> str | None:
    """Where documents for validation lie; None where a part of the training data is held out."""
    if config.valid_source is not None:
        return config.valid_source
    shards = _is_shards(config.source)
    return config.source if not shards and sources.has_validation(config.source) else None


def describe_data(config: DataConfig) -> str | None:
    """Which files a config reads, in one line; None where nothing is looked for."""
    if config.source in sources.NAMED and config.valid_source in (None, *sources.NAMED):
        return None
    own = validation_source(config)
    train = f"train: {_describe(config.source, 'train')}"
    if own is None and config.valid_fraction == 0:
        return f"{train}; valid: none"
    if own is None:
        return f"{train}; valid: the last {config.valid_fraction:g} of it"
    return f"{train}; valid: {_describe(own, 'valid')}"


def _describe(source: str, split: str) -> str:
    if source in sources.NAMED:
        return source
    return f"shards in {source}" if _is_shards(source) else str(choose_files(source, split))


def _is_shards(source: str) -> bool:
    return (expanded_path(source, "source") / SHARDS_SIDECAR).is_file()


def prepared_tokens(source: str, split: str = "train") -> Path | None:
    """The .bin file or the folder of token shards that a split of a source is, or None.

    ValueError for a folder whose shards are not all made yet.
    """
    if source in sources.NAMED:
        return None
    folder = expanded_path(source, "source")
    if _is_shards(source):
        return folder
    if (folder / PLAN).is_file():
        raise ValueError(
            f"{folder} has token shards that are not finished; run experiments.prepare_shards "
            "again, which continues"
        )
    first = sources.find_files(source, split)[0]
    return first if extension_of(first) in TOKENS else None


def find_tokenizer(config: DataConfig, split: str = "train") -> Tokenizer:
    """The tokenizer of a config; that of the sidecar where the source is prepared tokens.

    A source that is named for validation too, as for evaluation, may have files for that alone.
    """
    alone = config.valid_source == config.source and not sources.has_training(config.source)
    path = prepared_tokens(config.source, split if alone else "train")
    if path is not None:
        return open_own_tokenizer(path)
    alphabet = config.alphabet
    if config.tokenizer == "characters" and alphabet is None:
        alphabet = collect_alphabet(config)
    return open_tokenizer(config.tokenizer, alphabet, config.eos_token)


def collect_alphabet(config: DataConfig) -> str:
    """Every character of both splits, in the order of code points."""
    read = [(config.source, "train")]
    if (own := validation_source(config)) is not None:
        read.append((own, "valid"))
    found: set[str] = set()
    for source, split in read:
        if prepared_tokens(source, split) is None:
            for document in sources.read_documents(source, split, config.text_field):
                found.update(document.text)
    if not found:
        raise ValueError(f"{config.source}: the corpus is empty; no characters to make tokens of")
    return "".join(sorted(found))
