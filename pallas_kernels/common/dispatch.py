"""Which implementation of an op runs.

`implementation` is a name, a sequence of names tried in order, or None for the default. A name
never falls back: if it cannot run here it raises `NotImplementedError` with the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

IMPLEMENTATIONS = ("reference", "chunked", "pallas_tpu", "pallas_gpu")


def check_implementation(implementation: str | Sequence[str] | None) -> None:
    """Raise ValueError for a name that no op knows."""
    names = [implementation] if isinstance(implementation, str) else implementation or ()
    for name in names:
        if name not in IMPLEMENTATIONS:
            raise ValueError(
                f"implementation must be None or among {IMPLEMENTATIONS}, got {name!r}"
            )


def run(
    op: str,
    available: Mapping[str, Callable[..., Any]],
    implementation: str | Sequence[str] | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call the first implementation that supports these arguments.

    Args:
        op: the op's name, for messages.
        available: name -> function. A function says that it does not support its arguments by
            raising NotImplementedError; only that moves on to the next name of a sequence.
        implementation: as above; None means "chunked", which runs everywhere.
    """
    check_implementation(implementation)
    if implementation is None:
        implementation = "chunked"
    names = [implementation] if isinstance(implementation, str) else list(implementation)
    reasons = []
    for name in names:
        try:
            if name not in available:
                raise NotImplementedError(f"only {', '.join(available)} exist")
            return available[name](*args, **kwargs)
        except NotImplementedError as error:
            reasons.append(f"{name}: {error}")
    raise NotImplementedError(f"{op} has no usable implementation; {'; '.join(reasons)}")
