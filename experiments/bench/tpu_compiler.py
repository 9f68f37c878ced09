"""Compiles functions for a TPU that is not there, and reads the compiler's own account of kernels.

    reports, memory = compile_for("v5e", function, *shapes)

libtpu compiles for any TPU on any machine. Asked to, it writes down the schedule of every Pallas
kernel: the instruction bundles of each loop, one per cycle, stalls included and waits for memory
not; and what each bundle's slots do. From that come the figures here. Speed on hardware they are
not, but a kernel cannot be faster than its schedule.

The compiler reads its settings once, when libtpu is loaded, so this module must be imported before
anything asks for a TPU topology.
"""

import contextlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.aot import libtpu

_DUMPS = Path(tempfile.mkdtemp(prefix="tpu-schedules-"))
_DUMPS_OF_A_KERNEL = (
    "original",
    "packed-bundles-post-ra",
    "final_bundles",
    "final_hlo-static-per-bundle-utilization",
)
_PASSES = f".*({'|'.join(_DUMPS_OF_A_KERNEL)}).*"
os.environ["LIBTPU_INIT_ARGS"] = " ".join(
    [
        os.environ.get("LIBTPU_INIT_ARGS", ""),
        f"--xla_jf_dump_to={_DUMPS}",
        "--xla_jf_dump_llo_text=true",
        f"--xla_jf_dump_llo_pass_label_regex={_PASSES}",
    ]
)

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

TOPOLOGIES = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:1x1",
    "v5p": "v5p:1x1x1",
    "v6e": "v6e:1x1",
    "tpu7x": "tpu7x:1x1x1",
}


@dataclass(frozen=True)
class Piece:
    """A straight piece of a kernel's schedule: between two places that jumps lead to."""

    depth: int  # of the loop it lies in
    starts_loop: bool
    cycles: int  # scheduled for one pass, stalls included, waits for memory not
    slots: dict[str, int]  # cycles that each kind of slot would need alone
    comparisons: int  # vector comparisons: what tells a masked body from a full one
    spills: int  # registers stored to memory and fetched back


@dataclass(frozen=True)
class Kernel:
    """What the compiler says of one Pallas kernel."""

    name: str
    vmem_bytes: int
    smem_bytes: int
    pieces: tuple[Piece, ...]

    @property
    def spills(self) -> int:
        return sum(piece.spills for piece in self.pieces)

    @property
    def tile(self) -> tuple[Piece, ...]:
        """The pieces of the loop over tiles: the work on one tile, all branches."""
        loops = [[]]
        for piece in self.pieces:
            if piece.depth < _TILE_DEPTH or (piece.starts_loop and piece.depth == _TILE_DEPTH):
                loops.append([])
            if piece.depth >= _TILE_DEPTH:
                loops[-1].append(piece)
        return tuple(max(loops, key=lambda loop: sum(piece.cycles for piece in loop)))

    @property
    def full_tile(self) -> tuple[Piece, ...]:
        """Those that a tile inside the window runs: all but the loop over parts of others."""
        edge = set(map(id, self.edge_loop))
        return tuple(piece for piece in self.tile if id(piece) not in edge)

    @property
    def edge_loop(self) -> tuple[Piece, ...]:
        """The loop over parts of a tile on the window's edge, which compares distances."""
        loops = [[]]
        for piece in self.tile:
            if piece.depth == _TILE_DEPTH or (piece.starts_loop and piece.depth == _TILE_DEPTH + 1):
                loops.append([])
            if piece.depth > _TILE_DEPTH:
                loops[-1].append(piece)
        masked = [loop for loop in loops if any(x.comparisons >= _MASKED for x in loop)]
        return tuple(masked[0]) if masked else ()

    @property
    def edge_part(self) -> tuple[Piece, ...]:
        """What each part of such a tile runs: the loop over columns, inside that over rows."""
        depth = min((x.depth for x in self.edge_loop if x.comparisons >= _MASKED), default=0)
        return tuple(piece for piece in self.edge_loop if piece.depth >= depth)


# The grid is the outer loop of a kernel, and the loop over tiles the one inside.
_TILE_DEPTH = 2
# A masked body compares each of its registers; a full one compares a few numbers.
_MASKED = 24


def device(chip: str) -> Any:
    """The compiler's description of one chip."""
    return libtpu.devices(TOPOLOGIES[chip])[0]


@contextlib.contextmanager
def target(chip: str) -> Iterator[NamedSharding]:
    """Inside, kernels lower for the chip; gives the sharding that puts arguments there."""
    mesh = Mesh(np.array([device(chip)]), ("d",))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield NamedSharding(mesh, PartitionSpec())


def compile_for(
    chip: str, function: Callable[..., Any], *shapes: jax.ShapeDtypeStruct
) -> tuple[list[Kernel], Any]:
    """Compile for one chip; the kernels' reports, and the compiled program's memory analysis."""
    with target(chip) as where:
        arguments = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes
        )
        compiled = jax.jit(function).lower(*arguments).compile()
    dumps = sorted(_DUMPS.iterdir())
    kernels = _read_kernels(dumps)
    for path in dumps:
        path.unlink()
    return kernels, compiled.memory_analysis()


# -- reading the dumps -----------------------------------------------------------------------------

_FILE = re.compile(r"\d+-(?P<kernel>.+)-\d+-(?P<dump>[a-z_A-Z-]+)\.txt")
_BUNDLE = re.compile(
    r" *(?:0x[0-9a-f]+|0) +(?P<tag>LB|PF)?[^:{]*: *(?P<depth>>*)[^{]*\{(?P<body>.*)"
)
_ALLOCATION = re.compile(r"^ *#allocation\d+ \[.*?space=(\w+), size = (0x[0-9a-f]+)", re.M)


def _read_kernels(paths):
    dumps = {}
    for path in paths:
        match = _FILE.fullmatch(path.name)
        if match:
            dumps.setdefault(match["kernel"], {})[match["dump"]] = path
    kernels = []
    for name, files in dumps.items():
        if all(dump in files for dump in _DUMPS_OF_A_KERNEL):
            texts = [files[dump].read_text() for dump in _DUMPS_OF_A_KERNEL]
            if "tpu_custom_call" in texts[0] or "scratch operand" in texts[0]:
                kernels.append(_read_kernel(re.sub(r"\.\d+$", "", name), *texts))
    return kernels


def _read_kernel(name, original, scheduled, final, utilization):
    sizes = Counter()
    for space, size in _ALLOCATION.findall(original):
        sizes[space] += int(size, 16)
    # Stalls are rows of their own before the last pass, which folds them into other bundles; the
    # table of slots counts the bundles after it. Jumps lead to the same places in both.
    cycles = [len(rows) for rows in _pieces(scheduled)]
    final_pieces = _pieces(final)
    if len(cycles) != len(final_pieces):
        raise ValueError(f"{name}: {len(cycles)} pieces scheduled, {len(final_pieces)} at the end")
    header, capacity, *table = utilization.splitlines()[1:]
    names = [name.strip() for name in header.split(",")]
    capacity = dict(zip(names, map(int, capacity.split()), strict=True))
    used = iter([list(map(int, row.split())) for row in table if row.strip()[:1].isdigit()])
    pieces = []
    for count, rows in zip(cycles, final_pieces, strict=True):
        sums = dict(
            zip(names, map(sum, zip(*(next(used) for _ in rows), strict=True)), strict=True)
        )
        bodies = " ".join(row["body"] for row in rows)
        pieces.append(
            Piece(
                depth=max(len(row["depth"]) for row in rows),
                starts_loop=rows[0]["tag"] == "LB",
                cycles=count,
                slots={n: -(-sums[n] // capacity[n]) for n in names if sums[n] and ":" not in n},
                comparisons=len(re.findall(r"\bvcmp\b", bodies)),
                spills=sums["VSTORE:SPILL"] + sums["VLOAD:FILL"],
            )
        )
    return Kernel(name, sizes["vmem"], sizes["smem"], tuple(pieces))


def _pieces(text):
    """Bundles of a dump, cut where jumps lead to and where loops begin and end."""
    pieces, depth = [], 0
    for match in filter(None, map(_BUNDLE.match, text.splitlines())):
        stall = not re.sub(r"/\*.*?\*/", "", match["body"]).strip(" };")
        at = depth if stall else len(match["depth"])
        if match["tag"] or not pieces or at < depth:
            pieces.append([])
        pieces[-1].append(match)
        depth = at
    return pieces
