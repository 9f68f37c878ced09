"""Which chips of a collective exchange with each other, in all notations of a compiled program."""

import math
import re

import numpy as np

_MESH = re.compile(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((\S*?)\))? \{(.*?)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]*\](?:T\([\d,]*\))?)")
_LISTS = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}")


def groups(attributes: str, chips: int) -> np.ndarray:
    """Numbers of chips, int [groups, members]; of a permutation [pairs, 2].

    All in one group where the attributes name none.
    """
    if match := _MESH.search(attributes):
        return _of_axes(*match.groups())
    if match := _IOTA.search(attributes):
        return _numbers(match[3]).reshape(int(match[1]), int(match[2]))
    if match := _LISTS.search(attributes):
        lists = re.findall(r"\{([\d,]+)\}", match[1])
        return np.array([[int(chip) for chip in members.split(",")] for members in lists])
    return np.arange(chips)[None]


def _of_axes(mesh: str, order: str | None, axes: str) -> np.ndarray:
    """Groups along some axes of a mesh, or parts of them: 'a':(2)4 are the 4 of 'a' inside of 2."""
    shape, names = [], []
    found = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)
    parts = {name: (pre, part) for name, pre, part in found}
    for name, size in re.findall(r"'(\w+)'=(\d+)", mesh):
        pre, part = parts.get(name, ("", ""))
        if part:
            shape += [int(pre), int(part), int(size) // (int(pre) * int(part))]
            names += ["", name, ""]
        else:
            shape.append(int(size))
            names.append(name if name in parts else "")
    numbers = _numbers(order) if order else np.arange(math.prod(shape))
    inside = [place for place, name in enumerate(names) if name]
    last = list(range(len(shape) - len(inside), len(shape)))
    members = math.prod(shape[place] for place in inside)
    return np.moveaxis(numbers.reshape(shape), inside, last).reshape(-1, members)


def _numbers(text: str) -> np.ndarray:
    """Chips in an order: "[2,4]T(1,0)" are 8 in a grid with its axes exchanged, "1,0" a list."""
    if not text.startswith("["):
        return np.array([int(chip) for chip in re.findall(r"\d+", text)])
    dims, _, axes = text.strip("[)").partition("T(")
    shape = [int(size) for size in re.findall(r"\d+", dims)]
    grid = np.arange(math.prod(shape)).reshape(shape)
    return grid.transpose([int(axis) for axis in axes.split(",")] if axes else None).ravel()
