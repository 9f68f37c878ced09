"""Safetensors files: ours carry their config, others are read with a source and a config."""

import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from multiscreen_jax.cleanup import afterwards
from multiscreen_jax.convert.engine import from_torch, named_arrays
from multiscreen_jax.convert.sources import canonical_source, table_for
from multiscreen_jax.convert.stored import one_line, open_weights, shard_number
from multiscreen_jax.json_files import read_object
from multiscreen_jax.models.registry import config_classes
from multiscreen_jax.paths import checked_path
from multiscreen_jax.values import from_plain, to_plain

LARGEST_CONFIG = 1 << 20  # bytes of JSON


def save_safetensors(
    path: str | os.PathLike, params: Mapping[str, Any], config: Any, source: str | None = None
) -> None:
    """Writes parameters and config into one safetensors file.

    Args:
        path: the file; it is replaced in one step, so a crash leaves the old one whole.
        params: our parameter tree; arrays keep their dtype, bfloat16 included.
        config: the model's config, stored in the file's metadata as JSON with its class.
        source: names and layout in the file, by default the first source of its architecture, such
            as "multiscreen/paper", and "native" where it has none.

    Raises:
        ValueError, TypeError: as `to_torch`.
        FileNotFoundError, PermissionError, IsADirectoryError: the path cannot be written.
    """
    path = checked_path(path)
    source = canonical_source(config) if source is None else source
    arrays = named_arrays(table_for(source, config), params, config)
    metadata = {
        "format": "pt",
        "source": source,
        "config_class": type(config).__name__,
        "config": json.dumps(to_plain(config)),
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
    return OSError(f"cannot write {path}: {one_line(error)}")


def load_safetensors(
    path: str | os.PathLike, source: str | None = None, config: Any = None
) -> tuple[dict, Any]:
    """Parameters and config from a safetensors file, or from the shards of one model.

    Args:
        path: a file of `save_safetensors`; or, when both of the next are given, any other, the
            `.safetensors.index.json` of a model in shards, or the folder of one model.
        source: names and layout in the file, where the file does not say or to overrule it.
        config: likewise the config.

    Returns:
        (params, config): as `from_torch` gives them, and the config that was stored or given.

    Raises:
        FileNotFoundError: there is no such file, or a shard of it is missing.
        ValueError: not safetensors, cut short or damaged; shards that disagree with their index
            or each other; no stored config and none given; a config of an unknown class or with
            unknown fields; tensors that do not fit.

    Tensors are read one at a time into their places, so that memory holds what `from_torch` says
    and never a whole shard.
    """
    path = checked_path(path)
    weights = open_weights(path)
    metadata = weights.metadata[weights.files[0]]
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
    for file, facts in weights.metadata.items():
        if "crc32" in facts and facts["crc32"] != _checksum(weights.in_file(file)):
            raise ValueError(f"{file} is damaged: its tensors do not match their checksum")
    config = _stored_config(path, metadata) if config is None else config
    try:
        return from_torch(source or metadata["source"], weights, config), config
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}{_part_of(path)}: {error}") from None


def _part_of(path: Path) -> str:
    number = None if path.is_dir() else shard_number(path)
    if number is None:
        return ""
    return f" is shard {number[0]} of {number[1]}; give their folder or its index"


def _stored_config(path: Path, metadata: Mapping[str, str]) -> Any:
    name, known = metadata["config_class"], config_classes()
    if name not in known:
        raise ValueError(
            f"{path} holds a config of unknown class {name!r} (known: {', '.join(known)})"
        )
    what = f"{path} holds no usable {name}"
    fields = read_object(metadata.get("config", ""), what, largest=LARGEST_CONFIG)
    try:
        return from_plain(fields, known[name], "config")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{what}: {one_line(error)}") from None


def _checksum(arrays: Mapping[str, Any]) -> str:
    """CRC-32 over names and bytes, which safetensors itself does not protect."""
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8), crc)
    return f"{crc:08x}"
