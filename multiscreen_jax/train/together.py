"""Exchanges between the processes of one run: one's error ends all, one's config is all's.

Everything here has to be called by every process, in the same order; with one process it costs
nothing.
"""

import itertools
import json
from collections.abc import Callable
from typing import Any, TypeVar, overload

import jax
import numpy as np
from jax.experimental import multihost_utils

from multiscreen_jax.train import checks, config_json, distributed
from multiscreen_jax.train.errors import EndedTogether, exit_code

T = TypeVar("T")
_exchanges = itertools.count()


@overload
def all_or_none(act: Callable[[], T]) -> T: ...
@overload
def all_or_none(act: None) -> None: ...
def all_or_none(act: Callable[[], T] | None) -> T | None:
    """Returns act() when no process's act raised; otherwise raises the error, in every process.

    None stands for nothing to do. A process whose own act raised reports that; the others say
    which process it was, and what, and end with its code.
    """
    value, error = None, None
    try:
        if act is not None:
            value = act()
    except Exception as raised:
        error = raised
    told = _from_all(None if error is None else (exit_code(error), str(error)))
    if error is not None:
        raise error
    for number, failure in enumerate(told):
        if failure is not None:
            code, text = failure
            raise EndedTogether(f"process {number}: {text}", code)
    return value


def agree(facts: dict[str, Any]) -> None:
    """ValueError in every process, naming what differs, unless all have the same facts.

    Args:
      facts: plain values by name, which may be nested: settings, versions, a fingerprint.
    """
    first, *others = _from_all(facts)
    for number, other in enumerate(others, start=1):
        if differing := config_json.differences(first, other):
            listed = "; ".join(
                f"{_shown(name)} is {ours!r} in process 0, {theirs!r} in process {number}"
                for name, (ours, theirs) in differing.items()
            )
            raise ValueError(f"{listed}; allowed: one command, code and data in all processes")


def _shown(name: str) -> str:
    """Settings as the command line spells them, environment variables as they are."""
    return checks.flag_name(name) if "." in name else name


def _from_all(value: Any) -> list[Any]:
    """Each process's value, as JSON has it, by the process's number."""
    if jax.process_count() == 1:
        return [value]
    distributed.wait_for_all(f"exchange {next(_exchanges)}")
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    pairs = zip(rows, lengths, strict=True)
    return [json.loads(row[:length].tobytes()) for row, length in pairs]
