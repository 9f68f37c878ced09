"""Parts of a conversion table: names and layouts of one PyTorch implementation, as data.

Tables stand in the records of architectures; `multiscreen_jax.convert` reads them both ways.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One torch tensor and the arrays of ours that it holds.

    A row whose `name` contains {layer} is written for one layer: there is a tensor for each layer
    that has its arrays, and `parts` are paths inside a layer. Other rows have paths of the whole
    tree. A row is there if its arrays are.

    Attributes:
        name: of the tensor.
        axes: of the tensor, see `convert/layout.py`.
        parts: paths of ours, and their axes; a tensor with several parts is fused, in that order.
        sign: -1 where the source keeps the negative.
        when: a config field and the value under which the row exists, where arrays do not tell.
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


@dataclass(frozen=True, eq=False)  # equal to itself alone, and so hashable
class Source:
    """The table of one PyTorch implementation.

    Attributes:
        name: "architecture/implementation".
        fields: the config field behind each letter of the layouts, for messages.
        rows, copies, constants, lengths: its tensors.
        notes: what it is, and which settings of either side the weights do not carry.
        ignored: patterns (with {layer}) of buffers that carry no weights.
        settings: fields of our config from the implementation's own, a dict such as a config.json;
            ValueError for what ours does not have. None: it is not read.
        recorded: the system's name in recordings of the implementation, see tests/goldens.
    """

    name: str
    fields: Mapping[str, str]
    rows: tuple[Row, ...]
    notes: str
    copies: tuple[Copy, ...] = ()
    constants: tuple[Constant, ...] = ()
    lengths: tuple[LengthBuffer, ...] = ()
    ignored: tuple[str, ...] = ()
    settings: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    recorded: str | None = None


def holds(when: tuple[str, bool] | None, config: Any) -> bool:
    """Whether an entry with this `when` exists under this config."""
    return when is None or bool(getattr(config, when[0])) is when[1]
