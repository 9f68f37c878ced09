"""JSON from outside, read into an object or refused in one line that names where it came from."""

from __future__ import annotations

import json
import math
import reprlib
import types
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LARGEST = 1 << 26  # bytes: tens of thousands of token shards fit, and memory stays bounded
DEEPEST = 64  # brackets in brackets; Python's own recursion ends near 1000
INTEGERS = range(-(2**63), 2**64)

Kind = type | types.UnionType
_NAMES = {
    str: "a string",
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    type(None): "null",
}


def read_object(
    source: Path | bytes | str,
    what: str | None = None,
    keys: Mapping[str, Kind] | None = None,
    optional: Mapping[str, Kind] | None = None,
    largest: int = LARGEST,
) -> dict[str, Any]:
    """The JSON object in a file (a Path), or in bytes or text that were read already.

    Args:
      source: a Path is opened; bytes and str are the JSON itself.
      what: the name in messages; of a file, its path by default.
      keys: keys that must be there, each with the type of its value, such as `str`, `dict` or
        `int | None`, or `object`. A bool is no int; an int is a float, which must be finite.
      optional: the same for keys that may be left out.
      largest: bytes above which nothing is parsed.

    Raises:
      ValueError: one line that begins with `what`: too large, not UTF-8, not JSON, no object,
        nested too deeply, an integer beyond 64 bits, a key twice, missing or of another type.
      OSError: the file cannot be read.
    """
    what = str(what or (source if isinstance(source, Path) else "JSON"))
    content = _content(source, largest) if isinstance(source, Path) else source
    if len(content) > largest:
        raise ValueError(f"{what}: too large; allowed: {largest} bytes of JSON")
    values = _parse(content, what, _unique)
    _check_inside(values, what)
    return check_keys(values, what, keys or {}, optional)


def check_keys(
    values: Any, what: str, keys: Mapping[str, Kind], optional: Mapping[str, Kind] | None = None
) -> dict[str, Any]:
    """`values` if it is an object with these keys; the ValueError of `read_object` otherwise."""
    if not isinstance(values, dict):
        raise ValueError(f"{what}: holds {_name_of(type(values))}; allowed: an object, {{...}}")
    if missing := [key for key in keys if key not in values]:
        raise ValueError(f"{what}: lacks {', '.join(missing)}; needed: {', '.join(keys)}")
    for key, kind in {**keys, **(optional or {})}.items():
        if key in values and not _is(values[key], kind):
            kinds = " or ".join(_name_of(one) for one in _members(kind))
            raise ValueError(f"{what}: {key} is {reprlib.repr(values[key])}; allowed: {kinds}")
    return values


def parse(content: bytes | str, what: str) -> Any:
    """Any JSON value of bytes or text; ValueError in one line that begins with `what`.

    For content of bounded length of which little is used: what is inside is not checked.
    """
    return _parse(content, what)


def _parse(content: bytes | str, what: str, pairs_hook: Callable | None = None) -> Any:
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        return json.loads(text, object_pairs_hook=pairs_hook)
    except UnicodeDecodeError as error:
        given = error.object[error.start]
        raise ValueError(
            f"{what}: byte {given:#04x} at position {error.start} is not UTF-8 text"
        ) from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        raise ValueError(f"{what}: not JSON: {error.msg} at {line}column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # too many digits, or brackets in brackets
        reason = str(error).partition(";")[0]
        raise ValueError(f"{what}: JSON that cannot be read: {reason}") from None


def _content(path: Path, largest: int) -> bytes:
    with path.open("rb") as file:
        return file.read(largest + 1)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {reprlib.repr(twice)} is there twice")
    return values


def _check_inside(values: Any, what: str) -> None:
    level: list[Any] = [[values]]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for container in level:
            entries = container.values() if isinstance(container, dict) else container
            inner.extend(entry for entry in entries if isinstance(entry, dict | list))
            if any(isinstance(entry, int) and entry not in INTEGERS for entry in entries):
                raise ValueError(f"{what}: an integer has more than 64 bits")
        level = inner
    if level:
        raise ValueError(f"{what}: nested too deeply; allowed: {DEEPEST} brackets in brackets")


def _members(kind: Kind) -> tuple[type, ...]:
    return kind.__args__ if isinstance(kind, types.UnionType) else (kind,)


def _is(value: Any, kind: Kind) -> bool:
    kinds = _members(kind)
    if isinstance(value, bool):
        return bool in kinds or object in kinds
    if isinstance(value, int | float) and float in kinds:
        return math.isfinite(value)
    return isinstance(value, kinds)


def _name_of(kind: type) -> str:
    return _NAMES.get(kind, kind.__name__)
