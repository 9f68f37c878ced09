"""All architectures, their presets by name, and the way from a config to its model."""

import dataclasses
import functools
import operator
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from multiscreen_jax import fields, models
from multiscreen_jax.models.architecture import Architecture, record_of
from multiscreen_jax.models.decoder import Decoder, DecoderConfig
from multiscreen_jax.models.multiscreen import MultiscreenConfig

# The records of all files that `models/__init__.py` names, in its order.
ARCHITECTURES: tuple[Architecture, ...] = tuple(
    module.ARCHITECTURE for module in vars(models).values() if hasattr(module, "ARCHITECTURE")
)
MODELS: dict[type, Any] = {each.config: each.model for each in ARCHITECTURES}

if TYPE_CHECKING:
    ModelConfig = MultiscreenConfig | DecoderConfig
else:
    ModelConfig = functools.reduce(operator.or_, MODELS)


def _presets() -> dict[str, tuple[Architecture, str]]:
    return {f"{each.name}-{size}": (each, size) for each in ARCHITECTURES for size in each.presets}


def preset_names() -> list[str]:
    """All names that `create` knows."""
    return sorted(_presets())


def config_for(name: str, **overrides: Any) -> ModelConfig:
    """The config of a preset, with fields replaced, e.g. `config_for("transformer-8m", ...)`."""
    presets = _presets()
    if name not in presets:
        raise fields.unknown_name("model preset", name, presets)
    architecture, size = presets[name]
    allowed = [field.name for field in dataclasses.fields(architecture.config)]
    for field in overrides:
        if field not in allowed:
            raise fields.unknown_name(f"field of {name}", field, allowed)
    return architecture.preset(size, **overrides)


def build(config: Any) -> nn.Module:
    """The model of a config; of one that is not registered, yours say, that of its file's record.

    A `Decoder` where its file has none.

    Raises:
      TypeError: not a model's config.
    """
    if type(config) in MODELS:
        return MODELS[type(config)](config)
    if isinstance(config, DecoderConfig):
        record = record_of(type(config))
        return Decoder(config) if record is None else record.model(config)
    known = ", ".join(c.__name__ for c in MODELS)
    given = type(config).__name__
    raise TypeError(f"config must be one of {known} or another DecoderConfig, got {given}")


def config_classes() -> dict[str, type]:
    """All classes of model configs by name, those of a file of your own too once it has run."""
    found, left = dict.fromkeys(MODELS), [DecoderConfig]
    while left:
        below = left.pop().__subclasses__()
        left += below
        found |= dict.fromkeys(below)
    return {each.__name__: each for each in found}


def create(name: str, **overrides: Any) -> tuple[nn.Module, Any]:
    """(model, config) of a registered preset; keyword arguments replace config fields."""
    config = config_for(name, **overrides)
    return build(config), config
