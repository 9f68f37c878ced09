"""The copy of a tokenizer.json that lies beside prepared tokens, so that they move together."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from multiscreen_jax.data.config import NAMED_TOKENIZERS
from multiscreen_jax.data.tokenizers import Tokenizer, open_tokenizer

COPY = "tokenizer.json"


def refuse_other_copy(tokenizer: Tokenizer, folder: Path, more_allowed: str = "") -> None:
    """FileExistsError where the copy would replace another one, which may have tokens there."""
    copy = folder / COPY
    if tokenizer.name in NAMED_TOKENIZERS or not copy.exists():
        return
    if copy.read_bytes() != Path(tokenizer.name).read_bytes():
        raise FileExistsError(
            f"{copy} is another tokenizer than {tokenizer.name}; allowed: another --output"
            f"{more_allowed}"
        )


def kept_tokenizer(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """The tokenizer, opened from a copy that is put into `folder` in one move.

    ValueError if its file is not what it was when it was opened.
    """
    if tokenizer.name in NAMED_TOKENIZERS:
        return tokenizer
    copy, partial = folder / COPY, folder / f"{COPY}.partial"
    eos_token = tokenizer.settings.get("eos_token")
    if not copy.exists() or not copy.samefile(tokenizer.name):
        shutil.copyfile(tokenizer.name, partial)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        if open_tokenizer(str(partial), eos_token=eos_token).fingerprint != tokenizer.fingerprint:
            partial.unlink()
            raise ValueError(
                f"{tokenizer.name} was replaced while it was in use; allowed: the file it was"
            )
        partial.replace(copy)
    return open_tokenizer(str(copy), eos_token=eos_token)
