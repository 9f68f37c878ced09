"""Tiny corpora and tokenizers for the tests of multiscreen_jax.data."""

import gzip
import json
import lzma
from pathlib import Path

import numpy as np

TEXTS = [f"Document {n}: " + "na" * (3 + n % 5) + " naïve Batman.\n" for n in range(40)]


def write_json_lines(path: Path, texts=TEXTS, field: str = "text") -> Path:
    content = "".join(json.dumps({"id": n, field: text}) + "\n" for n, text in enumerate(texts))
    openers = {".gz": gzip.open, ".xz": lzma.open}
    opener = openers.get(path.suffix, open)
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(content)
    return path


def write_parquet(path: Path, texts=TEXTS, column: str = "text") -> Path:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"id": list(range(len(texts))), column: list(texts)})
    pyarrow.parquet.write_table(table, path)
    return path


def write_array_record(path: Path, texts=TEXTS) -> Path:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for text in texts:
        writer.write(text.encode("utf-8"))
    writer.close()
    return path


def write_tokens(path: Path, tokens, dtype: str = "uint16", **facts) -> Path:
    """A token file as another program might make it: no checksum, no documents."""
    np.asarray(tokens, dtype).tofile(path)
    facts = {"dtype": dtype, "vocab_size": 256, "tokenizer": "bytes", **facts}
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


def byte_level_tokenizer(path: Path, eos: str = "<|endoftext|>") -> Path:
    """A small byte-level BPE tokenizer.json, trained on TEXTS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[eos],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.enable_truncation(4)  # must be ignored: it would cut documents
    tokenizer.save(str(path))
    return path


def metaspace_tokenizer(path: Path) -> Path:
    """A tokenizer.json whose tokens have no length in bytes of their own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(path))
    return path


def bytes_behind(tokenizer, text):
    """Tokens of a text, and how many of its bytes are behind each, int64."""
    (encoded,) = tokenizer.encode_corpus([text])
    counts = encoded.byte_counts
    if counts is None:
        counts = tokenizer.byte_lengths[encoded.tokens]
    return encoded.tokens, counts.astype(np.int64)
