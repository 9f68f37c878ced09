"""What a conversion table is made of. Tables are data; `engine.py` reads them both ways."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One torch tensor and the arrays of ours that it holds.

    `name` may contain {layer}: then there is one tensor per layer and our arrays have a leading
    layer axis. `parts` maps our paths to their axes (see `layout.py`); a tensor with several
    parts is fused, in that order. `sign` is -1 where the source keeps the negative. `when` is a
    config field and the value under which the row exists.
    """

    name: str
    axes: str
    parts: Mapping[str, str]
    sign: int = 1
    when: tuple[str, bool] | None = None


@dataclass(frozen=True)
class Copy:
    """A second name of a tensor (tied weights): written always; read only to see that it agrees."""

    name: str
    of: str
    when: tuple[str, bool] | None = None


@dataclass(frozen=True)
class Constant:
    """A tensor with no counterpart in ours, which must hold `value` everywhere for that."""

    name: str
    axes: str
    value: float
    advice: str
    when: tuple[str, bool] | None = None


@dataclass(frozen=True)
class LengthBuffer:
    """An integer scalar per layer: the longest length seen in training, 0 where unknown."""

    name: str


@dataclass(frozen=True)
class Source:
    """The table of one PyTorch implementation.

    `fields` names the config field behind each letter of the layouts. `ignored` are patterns
    (with {layer}) of buffers that carry no weights. `notes` says which settings of either side
    the weights do not carry.
    """

    name: str
    config_class: type
    fields: Mapping[str, str]
    rows: tuple[Row, ...]
    notes: str
    copies: tuple[Copy, ...] = ()
    constants: tuple[Constant, ...] = ()
    lengths: tuple[LengthBuffer, ...] = ()
    ignored: tuple[str, ...] = field(default=())


def holds(when: tuple[str, bool] | None, config: Any) -> bool:
    """Whether an entry with this `when` exists under this config."""
    return when is None or bool(getattr(config, when[0])) is when[1]
