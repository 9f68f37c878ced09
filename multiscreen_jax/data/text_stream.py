"""Text of tokens as they come, equal to the text of all of them together."""

from __future__ import annotations

from collections.abc import Callable, Iterable

REPLACEMENT = "\ufffd"  # stands for bytes that are no character, or not yet
_WINDOW = 16  # tokens: enough to show a few characters
_LONGEST_UNFINISHED = 3  # bytes of a character that lacks at least one


class TextStream:
    """Gives the text that each token adds to those before it.

    Joined, the parts are `decode(context + tokens)` beyond `decode(context)`. Tokens are decoded
    together with some before them, because many decoders treat the first specially: they drop its
    space. A character whose bytes are spread over several tokens appears when it is complete.

    Args:
      decode: of a tokenizer whose text grows at its end.
      context: tokens before the first, such as a prompt's, whose text is not given.
      unsettled: how many characters at the end later tokens may change, besides an unfinished one.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], context: Iterable[int] = (), unsettled: int = 0
    ):
        self._decode, self._unsettled = decode, unsettled
        self._ids = [int(token) for token in context]
        text = decode(self._ids)
        self._given = len(text.removesuffix(REPLACEMENT))  # characters of decode(self._ids)
        self._forget(text)

    def push(self, token: int) -> str:
        """The text that one more token adds, "" inside a character."""
        self._ids.append(int(token))
        text = self._decode(self._ids)
        # The last sign may become a character.
        part = text[self._given : max(len(text.removesuffix(REPLACEMENT)) - self._unsettled, 0)]
        self._given += len(part)
        self._forget(text)
        return part

    def finish(self) -> str:
        """Gives what is incomplete, or not settled, at the end."""
        text = self._decode(self._ids)
        part = text[self._given :]
        self._given += len(part)
        return part

    def _forget(self, text: str) -> None:
        """Drops early tokens where the text of the others is the same without them."""
        for keep in (_WINDOW, len(self._ids) // 2):
            if len(self._ids) < 2 * keep:
                continue
            tail = self._decode(self._ids[-keep:])
            given = self._given - (len(text) - len(tail))
            # With text given before the end, nothing later is "the first"; with more than an
            # unfinished character, the kept tokens do not begin inside one that is still open.
            if given > 0 and len(tail) > _LONGEST_UNFINISHED and text.endswith(tail):
                self._ids, self._given = self._ids[-keep:], given
                return
