"""The interface of tokenizers: text to tokens, tokens to text, and the bytes behind each token."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from multiscreen_jax.data.text_stream import TextStream


class Encoded(NamedTuple):
    """A text of a corpus as tokens.

    Attributes:
      tokens: integers [n], unsigned where that saves memory.
      byte_counts: bytes of the text behind each token, unsigned [n], together all of its UTF-8;
        None where the tokenizer's `byte_lengths` has them.
      lost_bytes: how many of those bytes the tokens do not tell apart: unknown tokens stand for
        them, or none does.
    """

    tokens: np.ndarray
    byte_counts: np.ndarray | None
    lost_bytes: int


class Tokenizer(ABC):
    """The interface of every tokenizer.

    Attributes:
      name: what `open_tokenizer` and the sidecars of token files call it.
      settings: what the sidecar of a token file must hold beside the name.
      vocab_size: every token is smaller.
      eos_id: the token that ends a document, or None.
      fingerprint: equal for tokenizers that encode alike.
      byte_lengths: bytes of text behind each token, int64 [vocab_size], 0 for those that end
        documents; None where they depend on the text, as `encode_corpus` counts them.
      unsettled: how many characters at the end of a text later tokens may change.
    """

    name: str
    settings: dict[str, str]
    vocab_size: int
    eos_id: int | None
    fingerprint: str
    byte_lengths: np.ndarray | None
    unsettled: int = 0

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, int32 [n]; no text but NUL with bytes gives eos_id, none another
        special token."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokens of every text, in order; unsigned where that saves memory."""
        return [self.encode(text) for text in texts]

    def encode_corpus(self, texts: Sequence[str]) -> list[Encoded]:
        """Tokens of every text, in order, with what is known of the bytes behind them."""
        return [Encoded(tokens, None, 0) for tokens in self.encode_batch(texts)]

    @abstractmethod
    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of tokens; ValueError naming the first that is no token."""

    def text_stream(self, context: Iterable[int] = ()) -> TextStream:
        """A stream that gives the text of tokens one by one, after those of the context."""
        return TextStream(self.decode, context, self.unsettled)

    def decode_stream(self, tokens: Iterable[int], context: Iterable[int] = ()) -> Iterator[str]:
        """Text of tokens as they come, one part for each and what is left at the end as one more.

        Joined, the parts are what `decode` gives of context and tokens, less the text of the
        context, which may be the tokens of a prompt. See `text_stream.TextStream`.
        """
        stream = self.text_stream(context)
        for token in tokens:
            yield stream.push(token)
        if rest := stream.finish():
            yield rest

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


@contextlib.contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turns what a tokenizer library raises, a panic of its Rust code too, into one line."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except BaseException as error:
        # Panics are no Exception, and their class can be imported from nowhere.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{what}: {reason}") from None
