"""The small language in which a table states how one torch tensor holds our arrays.

    "(h k) d"       a matrix whose rows run over heads (outer) and key dims (inner)
    "(h k+v) d"     the same with two arrays fused: in each head first k rows, then v rows
    "[h v | h] d"   rows of one array after those of another: first h v, then h
    "(h c 2) d"     rows of a head are c pairs; our "d h (2 c)" has first all firsts, then seconds
    "1"             an axis of length one that our array does not have
    ""              a scalar

Letters are dims; their lengths are read off our arrays. Our side is a list such as "d h k".
Reshape, transpose, cut and join are all there is, so every layout can be read both ways.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np


def axis_groups(axes: str) -> list[list[str]]:
    """Splits "(h k+v) d" into [["h", "k+v"], ["d"]]: one list per axis of the tensor."""
    return [token.strip("()").split() for token in re.findall(r"\([^()]*\)|[^\s()]+", axes)]


def _flat(axes: str) -> list[str]:
    return [token for group in axis_groups(axes) for token in group]


def _length(token: str, sizes: Mapping[str, int]) -> int:
    return int(token) if token.isdigit() else sum(sizes[letter] for letter in token.split("+"))


def elementary_sizes(part_axes: Iterable[str], shapes: Iterable[tuple[int, ...]]) -> dict[str, int]:
    """Length of every letter, from the shapes of our arrays; a group has one letter at most."""
    sizes = {}
    for axes, shape in zip(part_axes, shapes, strict=True):
        for group, length in zip(axis_groups(axes), shape, strict=True):
            known = math.prod(int(token) for token in group if token.isdigit())
            sizes |= {token: length // known for token in group if not token.isdigit()}
    return sizes


def _blocks(axes: str) -> tuple[list[str], int]:
    """Axes of every block of "[h v | h] d", and the axis they follow each other on."""
    bracket = re.search(r"\[([^\]]*)\]", axes)
    if bracket is None:
        return [axes], 0
    before, after = axes[: bracket.start()], axes[bracket.end() :]
    blocks = [f"{before}({block.strip()}){after}" for block in bracket[1].split("|")]
    return blocks, len(axis_groups(before))


def shape_of(axes: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The tensor's shape for these dim lengths."""
    blocks, axis = _blocks(axes)
    shapes = [
        [math.prod(_length(token, sizes) for token in group) for group in axis_groups(block)]
        for block in blocks
    ]
    shape = shapes[0]
    if len(blocks) > 1:
        shape[axis] = sum(other[axis] for other in shapes)
    return tuple(shape)


def spelled_shape(axes: str, fields: Mapping[str, str]) -> str:
    """The shape in the config's own words, e.g. "(num_heads*(key_dim+value_dim), model_dim)"."""

    def spell(token: str) -> str:
        words = [fields.get(letter, letter) for letter in token.split("+")]
        return words[0] if len(words) == 1 else f"({'+'.join(words)})"

    blocks, axis = _blocks(axes)
    spelled = [["*".join(map(spell, group)) for group in axis_groups(b)] for b in blocks]
    groups = spelled[0]
    if len(blocks) > 1:
        groups[axis] = "+".join(other[axis] for other in spelled)
    return f"({', '.join(groups)}{',' if len(groups) == 1 else ''})"


def _spans(axes: str, part: int, sizes: Mapping[str, int]) -> tuple[list[str], list[slice]]:
    """Letters and slices of one part within the tensor's elementary axes."""
    letters, slices = [], []
    for token in _flat(axes):
        pieces = token.split("+")
        piece = part if len(pieces) > 1 else 0
        start = sum(_length(letter, sizes) for letter in pieces[:piece])
        letters.append(pieces[piece])
        slices.append(slice(start, start + _length(pieces[piece], sizes)))
    return letters, slices


def _order(source: Sequence[str], target: Sequence[str]) -> list[int]:
    return [source.index(letter) for letter in target]


def split_tensor(
    tensor: np.ndarray, axes: str, part_axes: Sequence[str], sizes: Mapping[str, int]
) -> list[np.ndarray]:
    """Our arrays out of one torch tensor, in the order of `part_axes` (views where possible)."""
    blocks, axis = _blocks(axes)
    if len(blocks) > 1:
        ends = np.cumsum([shape_of(block, sizes)[axis] for block in blocks])
        cut = zip(np.split(tensor, ends[:-1], axis), blocks, part_axes, strict=True)
        return [split_tensor(x, block, [part], sizes)[0] for x, block, part in cut]
    elementary = tensor.reshape([_length(token, sizes) for token in _flat(axes)])
    parts = []
    for index, target in enumerate(part_axes):
        letters, slices = _spans(axes, index, sizes)
        piece = elementary[tuple(slices)]
        piece = piece.reshape([n for n, x in zip(piece.shape, letters, strict=True) if x != "1"])
        piece = piece.transpose(_order([x for x in letters if x != "1"], _flat(target)))
        parts.append(piece.reshape(shape_of(target, sizes)))
    return parts


def join_tensor(
    parts: Sequence[np.ndarray], axes: str, part_axes: Sequence[str], sizes: Mapping[str, int]
) -> np.ndarray:
    """The inverse of `split_tensor`: one torch tensor, a fresh contiguous array."""
    blocks, axis = _blocks(axes)
    if len(blocks) > 1:
        pieces = zip(parts, blocks, part_axes, strict=True)
        return np.concatenate([join_tensor([x], b, [p], sizes) for x, b, p in pieces], axis)
    tokens = _flat(axes)
    shape = [_length(token, sizes) for token in tokens]
    joined = np.empty(shape, parts[0].dtype)
    for index, (part, target) in enumerate(zip(parts, part_axes, strict=True)):
        letters, slices = _spans(axes, index, sizes)
        piece = part.reshape([_length(token, sizes) for token in _flat(target)])
        piece = piece.transpose(_order(_flat(target), [x for x in letters if x != "1"]))
        joined[tuple(slices)] = piece.reshape([s.stop - s.start for s in slices])
    return joined.reshape(shape_of(axes, sizes))
