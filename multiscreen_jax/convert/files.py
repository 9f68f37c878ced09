"""Safetensors files: ours carry their config, others are read with a source and a config."""

import dataclasses
import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from multiscreen_jax.cleanup import afterwards
from multiscreen_jax.convert.engine import from_torch, named_arrays
from multiscreen_jax.convert.sources import TABLES, canonical_source, table_for
from multiscreen_jax.paths import require_local

CONFIG_CLASSES = {table.config_class.__name__: table.config_class for table in TABLES.values()}


def save_safetensors(
    path: str | os.PathLike, params: Mapping[str, Any], config: Any, source: str | None = None
) -> None:
    """Writes parameters and config into one safetensors file.

    Args:
        path: the file; it is replaced in one step, so a crash leaves the old one whole.
        params: our parameter tree; arrays keep their dtype, bfloat16 included.
        config: the model's config, stored in the file's metadata as JSON with its class.
        source: names and layout in the file, by default "multiscreen/paper" for Multiscreen and
            "transformer/hf-llama" for the Transformer.

    Raises:
        ValueError, TypeError: as `to_torch`.
        FileNotFoundError, PermissionError, IsADirectoryError: the path cannot be written.
    """
    require_local("path", path)
    path = Path(path)
    source = canonical_source(config) if source is None else source
    arrays = named_arrays(table_for(source, config), params, config)
    metadata = {
        "format": "pt",
        "source": source,
        "config_class": type(config).__name__,
        "config": json.dumps(dataclasses.asdict(config)),
        "crc32": _checksum(arrays),
    }
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory, not a file to write")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no directory {path.parent} to write {path.name} into")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"cannot write into {path.parent}")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with afterwards(lambda: part.unlink(missing_ok=True)):
        part.touch()  # the library writes files that only their owner may read
        mode = part.stat().st_mode
        try:
            save_file(arrays, part, metadata=metadata)
        except SafetensorError as error:
            raise _cannot_write(path, error) from None
        part.chmod(mode)
        os.replace(part, path)


def _cannot_write(path: Path, error: SafetensorError) -> OSError:
    """The error as Python itself would raise it, where the library names the system's number."""
    if found := re.search(r"os error (\d+)", str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])), str(path))
    return OSError(f"cannot write {path}: {_one_line(error)}")


def load_safetensors(
    path: str | os.PathLike, source: str | None = None, config: Any = None
) -> tuple[dict, Any]:
    """Parameters and config from a safetensors file.

    Args:
        path: a file of `save_safetensors`, or any other when both of the next are given.
        source: names and layout in the file, where the file does not say or to overrule it.
        config: likewise the config.

    Returns:
        (params, config): as `from_torch` gives them, and the config that was stored or given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a safetensors file, cut short or damaged; no stored config and none given;
            a config of an unknown class or with unknown fields; tensors that do not fit.
    """
    path = Path(path)
    if not path.is_file():
        what = "a directory, not a safetensors file" if path.is_dir() else "not there"
        raise FileNotFoundError(f"{path} is {what}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {_one_line(error)}") from None
    absent = [
        name
        for name, given, key in (("source", source, "source"), ("config", config, "config_class"))
        if given is None and key not in metadata
    ]
    if absent:
        raise ValueError(
            f"{path} has no {' and no '.join(absent)} in its metadata, so it was not written by "
            f"save_safetensors: pass {' and '.join(f'{name}=' for name in absent)}"
        )
    if "crc32" in metadata and metadata["crc32"] != _checksum(arrays):
        raise ValueError(f"{path} is damaged: its tensors do not match their checksum")
    config = _stored_config(path, metadata) if config is None else config
    try:
        return from_torch(source or metadata["source"], arrays, config), config
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from None


def _stored_config(path: Path, metadata: Mapping[str, str]) -> Any:
    name = metadata["config_class"]
    if name not in CONFIG_CLASSES:
        raise ValueError(
            f"{path} holds a config of unknown class {name!r} (known: {', '.join(CONFIG_CLASSES)})"
        )
    try:
        fields = json.loads(metadata.get("config", ""))
        if not isinstance(fields, dict):
            raise ValueError(f"expected an object, got {type(fields).__name__}")
        # JSON has no tuples, and a frozen config must stay hashable
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return CONFIG_CLASSES[name](**fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} holds no usable {name}: {_one_line(error)}") from None


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """CRC-32 over names and bytes, which safetensors itself does not protect."""
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8), crc)
    return f"{crc:08x}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
