"""Checks that configs share; each message names the field, what was given and what is allowed."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_PRECISIONS = (None, "default", "high", "highest")


def take(config: Any, part: Any) -> None:
    """Gives a config the values of a part's fields, which the part has checked and made Python's
    own."""
    for field in dataclasses.fields(part):
        object.__setattr__(config, field.name, getattr(part, field.name))


def dtype_name(field: str, value: Any) -> str:
    """The name of a floating dtype given as a string or a dtype-like object."""
    try:
        name = None if value is None else jnp.dtype(value).name  # numpy's None is float64
    except TypeError:
        name = value
    if name not in _DTYPES:
        raise ValueError(f"{field} must be one of {', '.join(_DTYPES)}, got {value!r}")
    return name


def cache_dtype(own: str, asked: Any) -> jnp.dtype:
    """The floating dtype of a cache: the model's own unless another was asked for."""
    return jnp.dtype(own if asked is None else dtype_name("the cache's dtype", asked))


def is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return is_integer(value) or isinstance(value, float | np.floating)


def positive_integers(config: Any, *fields: str, at_least: int = 1) -> None:
    for field in fields:
        value = getattr(config, field)
        if not is_integer(value) or value < at_least:
            raise ValueError(f"{field} must be an integer >= {at_least}, got {value!r}")
        object.__setattr__(config, field, int(value))  # numpy's have no JSON


def positive_numbers(config: Any, *fields: str, or_zero: bool = False) -> None:
    for field in fields:
        value = getattr(config, field)
        is_fine = is_number(value) and 0 <= value < float("inf") and (or_zero or value > 0)
        if not is_fine:
            lowest = ">= 0" if or_zero else "> 0"
            raise ValueError(f"{field} must be a finite number {lowest}, got {value!r}")
        object.__setattr__(config, field, value if isinstance(value, int) else float(value))


def booleans(config: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        if not isinstance(value, bool | np.bool):
            raise ValueError(f"{field} must be True or False, got {value!r}")
        object.__setattr__(config, field, bool(value))


def one_of(field: str, value: Any, allowed: Iterable[Any]) -> None:
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{field} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def precision(value: Any) -> None:
    one_of("precision", value, _PRECISIONS)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """A ValueError for a name that is not in `known`, with the nearest ones."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return ValueError(f"unknown {kind} {name!r}; {hint}known: {', '.join(known)}")
