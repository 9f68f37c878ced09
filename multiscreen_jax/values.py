"""Parts of configs as values: frozen dataclasses that JSON knows by their class's name."""

import dataclasses
import functools
import json
import types
import typing
from typing import Any

TAG = "class"


class Value:
    """A part of a config where any of several classes may stand; a frozen dataclass derives from
    it. Its name must be unique."""


def to_plain(value: Any, kind: Any = Any) -> Any:
    """A value as JSON's types, tagged with its class wherever the declared kind leaves it open."""
    if isinstance(value, tuple | list):
        entry = _entry_kind(kind)
        return [to_plain(each, entry) for each in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return json.loads(json.dumps(value))
    hints = _hints(type(value))
    fields = {
        field.name: to_plain(getattr(value, field.name), hints[field.name])
        for field in dataclasses.fields(value)
        if field.init
    }
    is_open = isinstance(value, Value) and _one_kind(kind) is not type(value)
    return {TAG: type(value).__name__, **fields} if is_open else fields


def from_plain(value: Any, kind: Any, path: str) -> Any:
    """The inverse of `to_plain`; lists become tuples where they are declared.

    Args:
        path: of the value, for messages.

    Raises:
        ValueError: a class or a field that there is not, in one line.
    """
    one = _one_kind(kind)
    if value is None or (isinstance(value, str | int | float) and not _is_plain_dataclass(one)):
        return value
    if isinstance(value, dict) and TAG in value and not _is_plain_dataclass(one):
        return _build(_named(value[TAG], path, one), value, path)
    if dataclasses.is_dataclass(one):
        if not isinstance(value, dict):
            raise ValueError(f"{path} is {value!r}; allowed: an object with fields")
        return _build(one, value, path)
    if isinstance(value, list) and typing.get_origin(one) is tuple:
        entry = _entry_kind(one)
        return tuple(
            from_plain(each, entry, f"{path}[{number}]")
            if isinstance(each, dict) or typing.get_origin(_one_kind(entry)) is tuple
            else tuple(each) if isinstance(each, list) else each
            for number, each in enumerate(value)
        )  # fmt: skip
    return value


def _build(kind: type, values: dict[str, Any], path: str) -> Any:
    hints = _hints(kind)
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    fields = {name: value for name, value in values.items() if name != TAG}
    for name in fields:
        if name not in known:
            raise ValueError(f"{path}.{name} is unknown; allowed: {', '.join(known)}")
    return kind(
        **{name: from_plain(x, hints[name], f"{path}.{name}") for name, x in fields.items()}
    )


def _is_plain_dataclass(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) and not issubclass(kind, Value)


def _named(name: str, path: str, kind: Any) -> type:
    known: dict[str, type] = {}
    found = [kind if isinstance(kind, type) and issubclass(kind, Value) else Value]
    while found:
        each = found.pop()
        known[each.__name__] = each
        found += each.__subclasses__()
    kinds = {n: k for n, k in known.items() if dataclasses.is_dataclass(k)}
    if name not in kinds:
        raise ValueError(f"{path}.{TAG} is {name!r}; allowed: {', '.join(sorted(kinds))}")
    return kinds[name]


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _one_kind(kind: Any) -> Any:
    """The kind itself, or what is left of a union with None."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        return options[0] if len(options) == 1 else Any
    return kind


def _entry_kind(kind: Any) -> Any:
    arguments = typing.get_args(_one_kind(kind))
    return arguments[0] if arguments else Any
