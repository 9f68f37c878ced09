"""The list of sources and how one is found."""

from typing import Any

from multiscreen_jax import fields
from multiscreen_jax.convert import linear_family, multiscreen, transformer
from multiscreen_jax.convert.table import Source

TABLES = {
    table.name: table for table in (*multiscreen.TABLES, *transformer.TABLES, *linear_family.TABLES)
}


def sources() -> list[str]:
    """Names that `from_torch` and `to_torch` accept."""
    return sorted(TABLES)


def describe(source: str) -> str:
    """What the source is and which settings its weights do not carry, in one paragraph."""
    return table_named(source).notes


def table_named(source: str) -> Source:
    """The table of this source; a ValueError with near matches where there is none."""
    if not isinstance(source, str):
        raise TypeError(f"source must be a name such as 'multiscreen/paper', got {_kind(source)}")
    if source not in TABLES:
        raise fields.unknown_name("conversion source", source, TABLES)
    return TABLES[source]


def table_for(source: str, config: Any) -> Source:
    """The table of this source, once the config is seen to be of its class and of equal layers."""
    table = table_named(source)
    if type(config) is not table.config_class:  # a subclass has other parameters
        raise TypeError(
            f"source {source!r} needs a {table.config_class.__name__}, got {_kind(config)}"
        )
    if getattr(config, "pattern", ("mixer",)) != ("mixer",):
        raise ValueError(f"source {source!r} has no layers of a pattern, got {config.pattern!r}")
    return table


def canonical_source(config: Any) -> str:
    """The source in which models of this config are saved: the first of its class."""
    for table in TABLES.values():
        if type(config) is table.config_class:
            return table.name
    raise TypeError(f"no conversion source for a config of class {_kind(config)}")


def _kind(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__
