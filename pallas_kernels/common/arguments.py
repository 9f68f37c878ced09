"""Checks of what the public ops are given: one line with the argument's name, and what is allowed.

Values can be seen outside jit only. There a small array is fetched from its device for it; ops
that are called in a loop belong inside jit.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

_PRECISIONS = ("default", "high", "highest")


def array(name: str, value: Any) -> Array:
    """The value as an array: numbers, or lists of them, are taken; None and text are not."""
    try:
        if value is not None:
            return jnp.asarray(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name} must be an array of numbers, got {_kind(value)}")


def optional_array(name: str, value: Any) -> Array | None:
    """`array`, but that None stays None."""
    return None if value is None else array(name, value)


def known(value: Any) -> np.ndarray | None:
    """The numbers of an array or of lists, or None where they cannot be seen: under jit, on other
    hosts."""
    for part in jax.tree.leaves(value):
        if isinstance(part, Tracer) or not getattr(part, "is_fully_addressable", True):
            return None
    return np.asarray(value)


def check_heads(
    name: str, value: Any, wrong: Callable[[np.ndarray], np.ndarray], allowed: str
) -> None:
    """ValueError that names the first head of a known [H] where it is wrong."""
    numbers = known(value)
    if numbers is not None and (refused := wrong(numbers.astype(np.float64))).any():
        head = int(refused.argmax())
        given, text = numbers[head], f"{float(numbers[head]):g}"
        if np.float32(float(text)) != np.float32(given):
            text = str(given)
        raise ValueError(f"{name} must be {allowed}, got {text} for head {head}")


def check_not_negative(name: str, value: Any) -> None:
    """ValueError for a known array of integers with a negative entry; None is fine."""
    numbers = None if value is None else known(value)
    if numbers is not None and numbers.min(initial=0) < 0:
        raise ValueError(f"{name} must be >= 0, got {numbers.min()}")


def scale_number(scale: Any) -> Any:
    """A float, or the scalar of a traced function; None stays None.

    Raises:
        ValueError: for what is no finite number.
    """
    if scale is None:
        return None
    if _is_real(scale):
        if isinstance(scale, Tracer):
            return scale
        with contextlib.suppress(OverflowError):
            if math.isfinite(number := float(scale)):
                return number
    raise ValueError(f"scale must be None or a finite number, got {_kind(scale)}")


def _is_real(value: Any) -> bool:
    """Whether a number of Python's, numpy's or JAX's, or a scalar array, and not complex."""
    if isinstance(value, int | float):
        return not isinstance(value, bool)
    dtype = getattr(value, "dtype", None)
    if dtype is None or value.shape != ():
        return False
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)


def check_precision(precision: Any) -> None:
    """ValueError unless `jax.lax` takes it for a product."""
    if precision is None or (isinstance(precision, str) and precision in _PRECISIONS):
        return
    one = jax.ShapeDtypeStruct((1,), jnp.float32)
    try:
        jax.eval_shape(functools.partial(jax.lax.dot, precision=precision), one, one)
    except (ValueError, TypeError):
        names = ", ".join(map(repr, _PRECISIONS))
        raise ValueError(
            f"precision must be None, {names} or one of jax.lax, got {_kind(precision)}"
        ) from None


def check_boolean(name: str, value: Any) -> None:
    """ValueError unless True or False."""
    if not isinstance(value, bool | np.bool):
        raise ValueError(f"{name} must be True or False, got {_kind(value)}")


def check_positive_integer(name: str, value: Any) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}")


def _kind(value: Any) -> str:
    """The value where it is short, and what it is where it is not."""
    text = repr(value)
    short = len(text) <= 40 and "\n" not in text and not isinstance(value, jax.Array)
    return text if short else f"a {type(value).__name__}"
