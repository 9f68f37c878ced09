"""One record for each architecture, at the end of its file; all lists are computed from them."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

from multiscreen_jax import fields
from multiscreen_jax.models.conversion import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contract:
    """Facts of an architecture for the checks that all of them get.

    Attributes:
        fields: of the small model that they build.
        tolerance: of tokens read by parts against the whole row, by the logits' deviation.
        excused: checks that cannot apply, by name, and why.
    """

    fields: Mapping[str, Any]
    tolerance: float = 5e-5
    excused: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Record of an architecture.

    Attributes:
        name: of the architecture; "gdn" begins the names of its presets, such as "gdn-tiny".
        config, model: its classes; `model(config)` is the language model.
        presets: by size, the fields of the config.
        paper: title and address of what it follows.
        sources: tables of PyTorch implementations whose weights it takes and gives; the first is
            what its own files are written in.
        contract: of the checks.
    """

    name: str
    config: type
    model: Callable[[Any], Any]
    presets: Mapping[str, Mapping[str, Any]]
    paper: str
    sources: tuple[Source, ...] = ()
    contract: Contract

    def preset(self, size: str, **overrides: Any) -> Any:
        """The config of a size, with fields replaced; ValueError naming the sizes there are."""
        if str(size).lower() not in self.presets:
            raise fields.unknown_name(f"{self.name} preset", size, self.presets)
        return self.config(**{**self.presets[size.lower()], **overrides})


def record_of(config: type) -> Architecture | None:
    """The record at the end of the file that defines a config's class; None without one."""
    record = getattr(sys.modules[config.__module__], "ARCHITECTURE", None)
    return record if record is not None and record.config is config else None


def architecture_of(config: type) -> Architecture:
    """The same; TypeError without one."""
    record = record_of(config)
    if record is None:
        raise TypeError(f"{config.__name__} has no record: its file does not end with ARCHITECTURE")
    return record
