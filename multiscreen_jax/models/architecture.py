"""One record for each architecture, at the end of its file; all lists are computed from them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from multiscreen_jax import fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Record of an architecture.

    Attributes:
        name: of the architecture; "gdn" begins the names of its presets, such as "gdn-tiny".
        config, model: its classes; `model(config)` is the language model.
        presets: by size, the fields of the config.
        paper: title and address of what it follows.
    """

    name: str
    config: type
    model: Callable[[Any], Any]
    presets: Mapping[str, Mapping[str, Any]]
    paper: str

    def preset(self, size: str, **overrides: Any) -> Any:
        """The config of a size, with fields replaced; ValueError naming the sizes there are."""
        if str(size).lower() not in self.presets:
            raise fields.unknown_name(f"{self.name} preset", size, self.presets)
        return self.config(**{**self.presets[size.lower()], **overrides})
