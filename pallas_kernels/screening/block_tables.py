"""Frozen tables of block sizes, one JSON file per chip, written by `experiments.bench.tune`."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

DIRECTORY = Path(__file__).parent / "block_tables"


def path_of(chip: str) -> Path:
    return DIRECTORY / f"{chip}.json"


@functools.cache
def table(chip: str) -> dict[str, Any]:
    """Sizes of the kernels of each configuration, by `configuration`; empty for a chip without."""
    path = path_of(chip)
    return json.loads(path.read_text())["blocks"] if path.exists() else {}


def configuration(dtype: jax.typing.DTypeLike, key_dim: int, value_dim: int) -> str:
    """What a table is indexed by."""
    return f"{jnp.dtype(dtype).name} K={key_dim} V={value_dim}"


def write(path: Path, source: str, blocks: dict[str, Any]) -> None:
    """Writes a table, a line per kernel.

    Args:
        source: what the sizes were chosen by.
    """
    entries = []
    path.parent.mkdir(exist_ok=True)
    for name, kernels in blocks.items():
        lines = [f"      {json.dumps(k)}: {json.dumps(sizes)}" for k, sizes in kernels.items()]
        entries.append(f"    {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n    }")
    body = "\n" + ",\n".join(entries) + "\n  " if entries else ""
    path.write_text(f'{{\n  "source": {json.dumps(source)},\n  "blocks": {{{body}}}\n}}\n')
