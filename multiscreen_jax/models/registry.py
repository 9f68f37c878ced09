"""Named presets of every architecture, and the way from a config to its model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from multiscreen_jax.models import fields, multiscreen, transformer
from multiscreen_jax.models.multiscreen import Multiscreen, MultiscreenConfig
from multiscreen_jax.models.transformer import Transformer, TransformerConfig

ModelConfig = MultiscreenConfig | TransformerConfig

# Config class -> model class: the one place that knows every architecture.
MODELS: dict[type, type[nn.Module]] = {
    MultiscreenConfig: Multiscreen,
    TransformerConfig: Transformer,
}


def _presets() -> dict[str, Callable[..., ModelConfig]]:
    presets: dict[str, Callable[..., ModelConfig]] = {}
    for size in multiscreen.PSI:
        presets[f"multiscreen-{size}"] = _named(MultiscreenConfig, size)
    for size in transformer.PRESETS:
        presets[f"transformer-{size}"] = _named(TransformerConfig, size)
    presets["multiscreen-tiny"] = _small_batch_multiscreen
    return presets


def _named(config_class: Any, size: str) -> Callable[..., ModelConfig]:
    return lambda **overrides: config_class.preset(size, **overrides)


def _small_batch_multiscreen(**overrides: Any) -> MultiscreenConfig:
    """For laptops: embedding rows of norm one, so that small batches learn."""
    shape = {"model_dim": 64, "num_layers": 4, "num_heads": 4, "value_dim": 32}
    return MultiscreenConfig(
        **{"vocab_size": 256, **shape, "embedding_init_scale": 1.0, **overrides}
    )


def preset_names() -> list[str]:
    """All names that `create` knows."""
    return sorted(_presets())


def config_for(name: str, **overrides: Any) -> ModelConfig:
    """The config of a preset, with fields replaced, e.g. `config_for("transformer-8m", ...)`."""
    presets = _presets()
    if name not in presets:
        raise fields.unknown_name("model preset", name, presets)
    allowed = [f.name for f in dataclasses.fields(type(presets[name]()))]
    for field in overrides:
        if field not in allowed:
            raise fields.unknown_name(f"field of {name}", field, allowed)
    return presets[name](**overrides)


def build(config: ModelConfig) -> nn.Module:
    """The model of a config."""
    if type(config) not in MODELS:
        known = ", ".join(c.__name__ for c in MODELS)
        raise TypeError(f"config must be one of {known}, got {type(config).__name__}")
    return MODELS[type(config)](config)


def create(name: str, **overrides: Any) -> tuple[nn.Module, ModelConfig]:
    """(model, config) of a registered preset; keyword arguments replace config fields."""
    config = config_for(name, **overrides)
    return build(config), config
