"""The kinds of files that hold documents or tokens, told by their extensions."""

from __future__ import annotations

from pathlib import Path

TEXT = (".txt", ".md")
JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.xz")
PARQUET = (".parquet",)
ARRAY_RECORD = (".array_record", ".arrayrecord")
TOKENS = (".bin",)
DOCUMENTS = TEXT + JSON_LINES + PARQUET + ARRAY_RECORD
KNOWN = DOCUMENTS + TOKENS


def extension_of(path: Path | str) -> str:
    """The extension that decides how a file is read, '' if it is none we know."""
    name = Path(path).name.lower()
    return next((extension for extension in KNOWN if name.endswith(extension)), "")
