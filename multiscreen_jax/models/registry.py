"""Named presets of every architecture, and the way from a config to its model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from multiscreen_jax.models import (
    delta_net,
    fields,
    gated_delta_net,
    log_linear,
    mamba2,
    multiscreen,
    retnet,
    transformer,
)
from multiscreen_jax.models.decoder import Decoder, DecoderConfig
from multiscreen_jax.models.delta_net import DeltaNet, DeltaNetConfig
from multiscreen_jax.models.gated_delta_net import GatedDeltaNet, GatedDeltaNetConfig
from multiscreen_jax.models.linear import AttentionLayers, ScreeningLayers
from multiscreen_jax.models.log_linear import (
    LogLinearGatedDeltaNet,
    LogLinearGatedDeltaNetConfig,
    LogLinearMamba2,
    LogLinearMamba2Config,
)
from multiscreen_jax.models.mamba2 import Mamba2, Mamba2Config
from multiscreen_jax.models.multiscreen import Multiscreen, MultiscreenConfig
from multiscreen_jax.models.retnet import RetNet, RetNetConfig
from multiscreen_jax.models.transformer import Transformer, TransformerConfig

ModelConfig = (
    MultiscreenConfig
    | TransformerConfig
    | RetNetConfig
    | DeltaNetConfig
    | Mamba2Config
    | GatedDeltaNetConfig
    | LogLinearMamba2Config
    | LogLinearGatedDeltaNetConfig
)

# Config class -> model class: the one place that knows every architecture.
MODELS: dict[type, type[nn.Module]] = {
    MultiscreenConfig: Multiscreen,
    TransformerConfig: Transformer,
    RetNetConfig: RetNet,
    DeltaNetConfig: DeltaNet,
    Mamba2Config: Mamba2,
    GatedDeltaNetConfig: GatedDeltaNet,
    LogLinearMamba2Config: LogLinearMamba2,
    LogLinearGatedDeltaNetConfig: LogLinearGatedDeltaNet,
}

# Prefix of the names, config class, its shapes.
_FAMILIES: tuple[tuple[str, Any, Any], ...] = (
    ("multiscreen", MultiscreenConfig, multiscreen.PSI),
    ("transformer", TransformerConfig, transformer.PRESETS),
    ("retnet", RetNetConfig, retnet.PRESETS),
    ("deltanet", DeltaNetConfig, delta_net.PRESETS),
    ("mamba2", Mamba2Config, mamba2.PRESETS),
    ("gdn", GatedDeltaNetConfig, gated_delta_net.PRESETS),
    ("log-linear-mamba2", LogLinearMamba2Config, log_linear.MAMBA2_PRESETS),
    ("log-linear-gdn", LogLinearGatedDeltaNetConfig, log_linear.GATED_DELTA_NET_PRESETS),
)


def _presets() -> dict[str, Callable[..., ModelConfig]]:
    presets: dict[str, Callable[..., ModelConfig]] = {
        f"{prefix}-{size}": _named(config_class, size)
        for prefix, config_class, sizes in _FAMILIES
        for size in sizes
    }
    presets["multiscreen-tiny"] = _small_batch_multiscreen
    presets["gdn-attention-tiny"] = _with_attention
    presets["gdn-screening-tiny"] = _with_screening
    return presets


def _named(config_class: Any, size: str) -> Callable[..., ModelConfig]:
    return lambda **overrides: config_class.preset(size, **overrides)


def _small_batch_multiscreen(**overrides: Any) -> MultiscreenConfig:
    """For laptops: embedding rows of norm one, so that small batches learn."""
    shape = {"model_dim": 64, "num_layers": 4, "num_heads": 4, "value_dim": 32}
    return MultiscreenConfig(
        **{"vocab_size": 256, **shape, "embedding_init_scale": 1.0, **overrides}
    )


def _with_attention(**overrides: Any) -> GatedDeltaNetConfig:
    """Every fourth layer attends."""
    pattern = {
        "pattern": ("mixer",) * 3 + ("attention",),
        "attention": AttentionLayers(num_heads=4),
    }
    return GatedDeltaNetConfig.preset("tiny", **{**pattern, **overrides})


def _with_screening(**overrides: Any) -> GatedDeltaNetConfig:
    """Every fourth layer screens."""
    tiles = ScreeningLayers(num_heads=4, value_dim=32)
    pattern = {"pattern": ("mixer",) * 3 + ("screening",), "screening": tiles}
    return GatedDeltaNetConfig.preset("tiny", **{**pattern, **overrides})


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


def build(config: ModelConfig | DecoderConfig) -> nn.Module:
    """The model of a config; of one that is not in `MODELS`, yours say, a `Decoder`.

    Raises:
      TypeError: not a model's config.
    """
    if type(config) in MODELS:
        return MODELS[type(config)](config)
    if isinstance(config, DecoderConfig):
        return Decoder(config)
    known = ", ".join(c.__name__ for c in MODELS)
    given = type(config).__name__
    raise TypeError(f"config must be one of {known} or another DecoderConfig, got {given}")


def create(name: str, **overrides: Any) -> tuple[nn.Module, ModelConfig]:
    """(model, config) of a registered preset; keyword arguments replace config fields."""
    config = config_for(name, **overrides)
    return build(config), config
