"""One-line checks of settings: `NAME is GIVEN; allowed: ...`, NAME as on the command line."""

import math
from collections.abc import Sequence
from typing import Any

LARGEST_SEED = 2**32 - 1  # of JAX's random keys, without 64-bit integers


def flag_name(path: str) -> str:
    """'optim.learning_rate' -> 'optim.learning-rate', the spelling of the command line."""
    return path.replace("_", "-")


def refuse(path: str, given: Any, allowed: str) -> None:
    """Raises the ValueError that every bad setting gets."""
    raise ValueError(f"{flag_name(path)} is {given!r}; allowed: {allowed}")


def integer(
    path: str, given: Any, lowest: int, highest: float = math.inf, also: Sequence[int] = ()
) -> None:
    """An int (not a bool) that is in [lowest, highest] or one of `also`."""
    is_integer = isinstance(given, int) and not isinstance(given, bool)
    if is_integer and (lowest <= given <= highest or given in also):
        return
    upper = "" if highest == math.inf else f" and <= {highest}"
    extra = "".join(f" or {value}" for value in also)
    refuse(path, given, f"an integer >= {lowest}{upper}{extra}")


def number(
    path: str,
    given: Any,
    lowest: float = -math.inf,
    highest: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> None:
    """A finite number in [lowest, highest]; `above` / `below` exclude the end itself."""
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if is_number and math.isfinite(given):
        from_below = given > lowest if above else given >= lowest
        from_above = given < highest if below else given <= highest
        if from_below and from_above:
            return
    parts = []
    if lowest > -math.inf:
        parts.append(f"{'>' if above else '>='} {lowest:g}")
    if highest < math.inf:
        parts.append(f"{'<' if below else '<='} {highest:g}")
    kind = "a number" if highest < math.inf else "a finite number"
    refuse(path, given, f"{kind} {' and '.join(parts)}".rstrip())


def choice(path: str, given: Any, allowed: Sequence[str]) -> None:
    """One of a few words."""
    if given not in allowed:
        refuse(path, given, ", ".join(allowed))


def text(path: str, given: str) -> None:
    """Characters that UTF-8 can encode; bytes of a command line that are no UTF-8 become others."""
    try:
        given.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{flag_name(path)} has {given[error.start]!r} at position {error.start}; allowed: "
            "text that UTF-8 can encode"
        ) from None
