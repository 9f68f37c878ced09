"""The sources of all architectures and how one is found."""

import functools
import string
from collections.abc import Mapping
from typing import Any

from multiscreen_jax import fields
from multiscreen_jax.models.conversion import Row, Source
from multiscreen_jax.models.fit import needed_shapes
from multiscreen_jax.models.registry import ARCHITECTURES, build, config_classes

NATIVE = "native"
TABLES = {source.name: source for each in ARCHITECTURES for source in each.sources}
_CONFIGS = {source.name: each.config for each in ARCHITECTURES for source in each.sources}


def sources() -> list[str]:
    """Names that `from_torch` and `to_torch` accept."""
    return sorted(TABLES)


def describe(source: str) -> str:
    """What the source is and which settings its weights do not carry, in one paragraph."""
    return table_named(source).notes


def read_config(source: str, config: Mapping[str, Any], **more: Any) -> Any:
    """Our config from the implementation's own.

    Args:
        source: one of `sources()`.
        config: the implementation's settings by its own names, such as a parsed config.json.
        more: fields of our config, in place of what `config` says or beside it.

    Raises:
        ValueError: a source whose configs are not read; a setting that is missing or that ours does
            not have.
    """
    table = table_named(source)
    if table.settings is None:
        raise ValueError(f"source {source!r} has no config that can be read; make ours yourself")
    try:
        found = table.settings(config)
    except KeyError as error:
        raise ValueError(f"{source}: its config has no {error.args[0]!r}") from None
    return _CONFIGS[source](**(found | more))


def table_named(source: str) -> Source:
    """The table of this source; a ValueError with near matches where there is none."""
    if not isinstance(source, str):
        raise TypeError(f"source must be a name such as 'multiscreen/paper', got {_kind(source)}")
    if source not in TABLES:
        raise fields.unknown_name("conversion source", source, TABLES)
    return TABLES[source]


def table_for(source: str, config: Any) -> Source:
    """The table of this source, once the config is seen to be of its class."""
    if source == NATIVE:
        return native_table(config)
    table = table_named(source)
    if type(config) is not _CONFIGS[source]:  # a subclass has other parameters
        raise TypeError(
            f"source {source!r} needs a {_CONFIGS[source].__name__}, got {_kind(config)}"
        )
    return table


def tables_of(config: Any) -> list[Source]:
    """All tables for configs of this class; the first is what models of it are saved in."""
    return [table for name, table in TABLES.items() if type(config) is _CONFIGS[name]]


def canonical_source(config: Any) -> str:
    """The source in which models of this config are saved: the first of its class, or "native"."""
    if type(config) not in config_classes().values():
        raise TypeError(f"config must be a model's, got {_kind(config)}")
    return next((table.name for table in tables_of(config)), NATIVE)


@functools.lru_cache(maxsize=64)
def native_table(config: Any) -> Source:
    """Our own arrays as they are, under their paths: for models that no other library has."""
    model = build(config)

    def row(name: str, shape: tuple[int, ...]) -> Row:
        axes = " ".join(string.ascii_lowercase[: len(shape)])
        return Row(name, axes, {name.replace(".", "/"): axes})

    rows = tuple(row(name, shape) for name, shape in needed_shapes(model).items())
    return Source(NATIVE, fields={}, rows=rows, notes="This library's own names and layouts.")


def _kind(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__
