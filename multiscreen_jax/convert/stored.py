"""Tensors of a safetensors file, or of the many shards of one model, read when asked for.

A model in shards is a folder of `NAME-00001-of-00003.safetensors` and, as hubs have it, a
`NAME.safetensors.index.json` whose `weight_map` says which shard holds which tensor.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from multiscreen_jax.json_files import read_object
from multiscreen_jax.paths import refuse_lfs_pointer

INDEX = ".index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
OPEN_FILES = 16
MAX_NAMED = 3
LONGEST_REASON = 500  # characters
_SHARD = re.compile(r"(.+)-0*(\d+)-of-0*(\d+)\.safetensors")
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file; `np.asarray` reads it."""

    weights: "Weights"
    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        tensor = self.weights.read(self.file, self.name)
        return tensor if dtype is None else tensor.astype(dtype, copy=False)


class Weights(Mapping[str, StoredTensor]):
    """Names to tensors over all files; only headers are read before a tensor is asked for.

    Attributes:
        files: in order; more than one where the model is in shards.
        metadata: of every file.
    """

    def __init__(self, files: list[Path]):
        self.files = files
        self.metadata: dict[Path, dict[str, str]] = {}
        self._open = functools.lru_cache(OPEN_FILES)(_open)
        self._tensors: dict[str, StoredTensor] = {}
        for file in files:
            handle = self._open(file)
            self.metadata[file] = handle.metadata() or {}
            for name in handle.keys():  # noqa: SIM118
                if name in self._tensors:
                    other = self._tensors[name].file.name
                    raise ValueError(f"{file}: {name!r} is in {other} too; allowed: one shard")
                entry = handle.get_slice(name)
                dtype = _FLOATS.get(entry.get_dtype(), entry.get_dtype())
                shape = tuple(entry.get_shape())
                self._tensors[name] = StoredTensor(self, file, name, shape, dtype)

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def read(self, file: Path, name: str) -> np.ndarray:
        """One tensor of one file."""
        try:
            return self._open(file).get_tensor(name)
        except (SafetensorError, OSError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{file}: {name!r} cannot be read: {one_line(error)}") from None

    def in_file(self, file: Path) -> dict[str, StoredTensor]:
        """The tensors of one file."""
        return {name: tensor for name, tensor in self._tensors.items() if tensor.file == file}


def open_weights(path: Path) -> Weights:
    """The tensors of a file, a folder or an index.

    Raises:
        FileNotFoundError: nothing is there, or a shard is missing.
        ValueError: not safetensors, or index, shards and folder disagree.
    """
    if path.is_dir():
        files, index = _of_folder(path)
    elif not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    else:
        files, index = ([], path) if path.name.endswith(INDEX) else ([path], None)
    if index is None:
        return Weights(files)
    held = _weight_map(index)
    weights = Weights(_listed(index, held))
    for name, file in held.items():
        if name not in weights or weights[name].file.name != file:
            raise ValueError(f"{index}: {name!r} is not in {file}, which should hold it")
    return weights


def shard_number(path: Path) -> tuple[int, int] | None:
    """(k, n) of a file named as shard k of n, where n is above 1."""
    match = _SHARD.fullmatch(path.name)
    return (int(match[2]), int(match[3])) if match and int(match[3]) > 1 else None


def one_line(error: BaseException) -> str:
    """The message of an error, without line ends and not longer than a reader bears."""
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."


def _of_folder(folder: Path) -> tuple[list[Path], Path | None]:
    """The files of the one model in a folder, and its index where it has one."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    files = [folder / name for name in names if name.endswith(".safetensors")]
    indexes = [folder / name for name in names if name.endswith(f".safetensors{INDEX}")]
    if not files and not indexes:
        pickled = [name for name in names if Path(name).suffix in PICKLED]
        hint = f"; {pickled[0]} is a pickle, which may run code when opened" if pickled else ""
        raise FileNotFoundError(f"{folder} is a directory without a safetensors file{hint}")
    if not indexes:
        return (files if len(files) == 1 else _complete_set(folder, files)), None
    listed = _listed(indexes[0], _weight_map(indexes[0])) if len(indexes) == 1 else []
    if others := [file for file in (*indexes[1:], *files) if file not in listed]:
        raise _twice(folder, [indexes[0], *others])
    return listed, indexes[0]


def _complete_set(folder: Path, files: list[Path]) -> list[Path]:
    """Shards without an index, where every one of them is there and nothing else."""
    matches = [_SHARD.fullmatch(file.name) for file in files]
    if None in matches or len({(match[1], match[3]) for match in matches if match}) > 1:
        raise _twice(folder, files)
    numbers = {int(match[2]) for match in matches if match}
    count = next(int(match[3]) for match in matches if match)
    absent = [number for number in range(1, min(count, 10**5) + 1) if number not in numbers]
    if absent or len(numbers) < len(files):
        raise FileNotFoundError(
            f"{folder} has {len(files)} of {count} shards; missing: shard "
            f"{', '.join(map(str, absent[:MAX_NAMED]))}"
        )
    return files


def _twice(folder: Path, found: list[Path]) -> ValueError:
    names = " and ".join(file.name for file in found[:MAX_NAMED])
    return ValueError(f"{folder} has {names}; allowed: one model, so give the path of one of them")


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor names to the names of shards beside the index."""
    refuse_lfs_pointer(index)
    held = read_object(index, keys={"weight_map": dict})["weight_map"]
    if not held:
        raise ValueError(f"{index}: weight_map is empty; allowed: at least one tensor")
    for name, file in held.items():
        if isinstance(file, str) and Path(file).suffix in PICKLED:
            raise ValueError(
                f"{index}: {name!r} is in {file!r}, a pickle, which may run code when opened; "
                "allowed: safetensors"
            )
        if not isinstance(file, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", file):
            raise ValueError(
                f"{index}: {name!r} is in {file!r}; allowed: the name of a .safetensors file "
                "beside the index"
            )
    return held


def _listed(index: Path, held: dict[str, str]) -> list[Path]:
    files = [index.parent / name for name in sorted(set(held.values()))]
    if absent := [file.name for file in files if not file.is_file()]:
        more = f" and {len(absent) - MAX_NAMED} more" if len(absent) > MAX_NAMED else ""
        raise FileNotFoundError(
            f"{index} names {len(files)} shards, of which {len(absent)} are not there: "
            f"{', '.join(map(repr, absent[:MAX_NAMED]))}{more}"
        )
    return files


def _open(file: Path) -> Any:
    refuse_lfs_pointer(file)
    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError, TypeError, ValueError, AttributeError) as error:
        with file.open("rb") as content:
            pickled = content.read(2) in (b"PK", b"\x80\x02")
        reason = "it is a pickle, which may run code when opened" if pickled else one_line(error)
        raise ValueError(f"{file} cannot be read as safetensors: {reason}") from None
