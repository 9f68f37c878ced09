"""What the TPU kernels of screening share: a tile as one product, and streams of blocks.

Relevance is a perfect square. With the half angle c = cos(pi (i - j) / 2w) the softmask is c^2, so

    sqrt(alpha m) = max(g, 0),   g = (1 - (1 - s) / r) c,

and g is a product of vectors: with a = pi i / 2w and b = pi j / 2w,

    g_ij = [q/r cos a, q/r sin a, (1 - 1/r) cos a, (1 - 1/r) sin a]
         . [k   cos b, k   sin b,           cos b,           sin b]

A contraction of 2 (K + 1) costs the MXU what one of K costs, up to its width. So similarity, trim
and mask of a tile are one product, and what is left per pair is a maximum and a square; the
gradients of q, k, window and width follow from the gradients of the two factors. Angles are counted
from the start of the block that stays, so they are small and position costs no accuracy.

Every kernel keeps one block of tokens, the rows of its tiles (queries in the forward and for dq,
keys for dk and dv), and streams blocks of the other side past it, the columns. Arrays are
time-minor, [features, tokens]: XLA keeps [.., T, K] with K < 128 that way, and registers are full.

A bf16 product rounds its factors to 8 bits, too few for cosines and for q/r. So each factor goes in
as a sum of two bf16 numbers, which takes rows of the contraction that are empty otherwise. With
float32 products all operands are sums of three bf16 numbers: 24 bits.

A tile inside the window is worked on as a whole, and one on its edge in parts of which those beyond
the edge are left out.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.common.pallas import pl, pltpu
from pallas_kernels.screening.block_sizes import FEATURES, TpuBlock, factor_rows

LANES = 128
SUBLANES = 8
PRODUCT_DTYPE = jnp.bfloat16  # of all operands of products


class Plan(NamedTuple):
    """What is known of a call when it is compiled."""

    batch: int
    heads: int
    key_dim: int
    value_dim: int
    queries: int  # tokens, padded; the last of the keys', unless apart
    keys: int  # as many
    block: TpuBlock
    rows_are_queries: bool
    exact: bool  # float32 products, else bf16 with float32 sums
    packed: bool  # several documents in a row
    apart: bool = False  # queries come after the keys and a gap, known at run time

    @property
    def rows(self) -> int:
        return self.block.rows

    @property
    def columns(self) -> int:
        return self.block.columns

    @property
    def length(self) -> int:
        """Tokens of the side that stays."""
        return self.queries if self.rows_are_queries else self.keys

    def before(self, reach_ref) -> jax.Array | int:
        """Tokens from the first key to the first query: the last of these scalars, if apart."""
        return reach_ref[self.heads] if self.apart else self.keys - self.queries

    @property
    def dtype(self) -> jnp.dtype:
        """Of what is kept of a tile and enters no product."""
        return jnp.dtype(jnp.float32 if self.exact else jnp.bfloat16)

    @property
    def parts(self) -> int:
        """How many bf16 numbers stand for a number of a tile, or of v or dh."""
        return 3 if self.exact else 1

    @property
    def factor_parts(self) -> int:
        """How many bf16 numbers stand for a number of a factor of g."""
        return 3 if self.exact else 2

    @property
    def factor_rows(self) -> int:
        return factor_rows(self.key_dim)

    @property
    def contraction(self) -> int:
        """Length of the product that gives g."""
        return ceil_to(self.factor_rows * len(part_pairs(self.factor_parts)), LANES)

    @property
    def value_contraction(self) -> int:
        """Length of the product of v and dh."""
        return self.value_dim * len(part_pairs(self.parts))


class Head(NamedTuple):
    """What makes a head's factors, each [8, LANES].

    A kernel keeps them in memory and reads them where it needs them: in registers, all its loops
    through, they would take the place of a tile.
    """

    turns_hi: jax.Array  # turns_hi + turns_lo is 1 / 4w, full turns of the angle per token
    turns_lo: jax.Array
    inverse_width: jax.Array
    token: jax.Array  # 0, 1, ... along the lanes
    row: jax.Array  # 0, 1, ... 7


def head_scalars(
    window: jax.Array, width: jax.Array, farthest: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """int32 [H], the largest distances at which keys count, and float32 [3 H] for `make_head`."""
    # In this order, a window of infinity or NaN does no harm.
    reach = jnp.clip(jnp.minimum(jnp.ceil(window) - 1, farthest).astype(jnp.int32), 0, farthest)
    turns = 0.25 / window
    # Twelve bits, so that the product with a position below 4096 is exact.
    bits = lax.bitcast_convert_type(turns, jnp.int32) & ~0xFFF
    turns_hi = lax.bitcast_convert_type(bits, jnp.float32)
    return reach, jnp.concatenate([turns_hi, turns - turns_hi, 1 / width])


def make_head(turns_hi, turns_lo, inverse_width) -> Head:
    shape = (SUBLANES, LANES)
    scalars = (jnp.full(shape, x, jnp.float32) for x in (turns_hi, turns_lo, inverse_width))
    counts = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 0))
    return Head(*scalars, *(x.astype(jnp.float32) for x in counts))


def keep_head(head_ref, numbers_ref, head, heads: int) -> None:
    for n, x in enumerate(make_head(*(numbers_ref[n * heads + head] for n in range(3)))):
        head_ref[n] = x


def read_head(head_ref) -> Head:
    return Head(*(head_ref[n] for n in range(len(Head._fields))))


def ceil_to(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def dot(a, b, contract: tuple[int, int]):
    """Product of bf16 arrays over one axis of each, in float32."""
    dims = (((contract[0],), (contract[1],)), ((), ()))
    precision = lax.Precision.DEFAULT  # whatever the user's default for other products
    return lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


# -- numbers as sums of bf16 numbers ---------------------------------------------------------------


def split(x, parts: int) -> list[jax.Array]:
    """x as a sum of float32 numbers: all but the last are bf16 numbers exactly, that one nearly."""
    split_off = []
    for _ in range(parts - 1):
        # By bits: a compiler may take a conversion to bf16 and back for nothing.
        bits = lax.bitcast_convert_type(x, jnp.int32)
        high = lax.bitcast_convert_type((bits + 0x8000) & ~0xFFFF, jnp.float32)
        split_off.append(high)
        x = x - high
    return [*split_off, x]


def part_pairs(parts: int) -> list[tuple[int, int]]:
    """Which parts of two numbers are multiplied: all but those below the last bit kept."""
    return [(i, j) for i in range(parts) for j in range(parts - i)]


def operand(x, parts: int, left: bool):
    """x [features, tokens] as an operand of a product over features: [D, tokens]."""
    pieces = split(x, parts)
    return jnp.concatenate([pieces[i if left else j] for i, j in part_pairs(parts)])


def store_split(ref, where, x) -> None:
    """x as bf16 parts, along the first axis of ref."""
    for n, part in enumerate(split(x, ref.shape[0])):
        ref[n, *where] = part.astype(ref.dtype)


# -- factors ---------------------------------------------------------------------------------------


class Turn(NamedTuple):
    """Angles pi x / 2w of positions x, each [8, tokens] with equal rows."""

    angle: jax.Array
    cosine: jax.Array
    sine: jax.Array


def _polynomial(x, coefficients):
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


def turn(start, head: Head) -> Turn:
    """The angles of positions start, start + 1, ..."""
    x = head.token + start
    coarse, fine = x * head.turns_hi, x * head.turns_lo
    half = math.pi * ((coarse - jnp.round(coarse)) + fine)  # half the angle, within pi / 2
    square = half * half
    sine = half * _polynomial(square, [(-1) ** n / math.factorial(2 * n + 1) for n in range(8)])
    cosine = _polynomial(square, [(-1) ** n / math.factorial(2 * n) for n in range(8)])
    angle = 2 * math.pi * (coarse + fine)
    return Turn(angle, 1 - 2 * (sine * sine), 2 * (sine * cosine))


def repeated(x, rows: int):
    """[rows, tokens] from equal rows [8, tokens]."""
    return jnp.concatenate([x] * (rows // SUBLANES))


def in_two_rows(first, second, head: Head):
    """[8, tokens] with these in the first two rows, and zeros."""
    return jnp.where(head.row == 0, first, jnp.where(head.row == 1, second, 0))


def for_features(plan: Plan, body: Callable[["pl.Slice", Any], Any], carry: Any = None):
    """carry = body(features, carry) over parts of K which registers hold; the last carry."""
    if plan.key_dim <= FEATURES:
        return body(pl.Slice(0, plan.key_dim), carry)
    size = FEATURES // 2  # a loop's carry takes registers too

    def step(n, carry):
        return body(pl.Slice(pl.multiple_of(n * size, size), size), carry)

    return lax.fori_loop(0, plan.key_dim // size, step, carry)


def for_factor(
    plan: Plan,
    x_of: Callable[["pl.Slice"], jax.Array],
    is_query: bool,
    turned: Turn,
    head: Head,
    body: Callable[[Any, jax.Array], None],
) -> None:
    """body(first row, rows) for the pieces of one factor of g, [F, tokens] in float32.

    The factor is x cosine, x sine, and in two rows constant cosine, constant sine; for queries x is
    q / r and the constant 1 - 1 / r, for keys k and 1.

    Args:
        x_of: some features of q or k, [features, tokens].
    """

    def vector(features, _):
        x = x_of(features).astype(jnp.float32)
        if is_query:
            x = x * repeated(head.inverse_width, x.shape[0])
        body(features.start, x * repeated(turned.cosine, x.shape[0]))
        body(plan.key_dim + features.start, x * repeated(turned.sine, x.shape[0]))

    for_features(plan, vector)
    constant = 1 - head.inverse_width if is_query else 1
    constants = in_two_rows(constant * turned.cosine, constant * turned.sine, head)
    padding = plan.factor_rows - 2 * plan.key_dim - SUBLANES
    if padding:
        constants = jnp.concatenate([constants, jnp.zeros((padding, LANES), jnp.float32)])
    body(2 * plan.key_dim, constants)


def store_operand(ref, where, first, x, plan: Plan, left: bool) -> None:
    """Writes rows first, first + 1, ... of a factor to all their places in [D, tokens]."""
    pieces = split(x, plan.factor_parts)
    for n, (i, j) in enumerate(part_pairs(plan.factor_parts)):
        rows = pl.Slice(n * plan.factor_rows + first, x.shape[0])
        ref[rows, where] = pieces[i if left else j].astype(ref.dtype)


def clear_empty(ref, plan: Plan) -> None:
    """Zeros where an operand of [D, tokens] has no rows."""
    stop = plan.factor_rows * len(part_pairs(plan.factor_parts))
    if stop < plan.contraction:
        ref[stop:] = jnp.zeros((plan.contraction - stop, ref.shape[1]), ref.dtype)


def for_factor_tokens(tokens: int, body: Callable[["pl.Slice"], None]) -> None:
    """body(tokens) for each part of a block whose factors fit the registers together."""

    def step(n, _):
        body(pl.Slice(pl.multiple_of(n * LANES, LANES), LANES))

    lax.fori_loop(0, tokens // LANES, step, None)


def keep_left(left_ref, rows_ref, turn_ref, x_ref, head_ref, plan: Plan) -> None:
    """Writes the left operand of all tiles of this grid step, [rows, D], and its angles.

    Args:
        rows_ref: [D, LANES], where it waits to be transposed: registers would not hold all of it.
    """

    def keep_turn(where):
        for n, x in enumerate(turn(where.start.astype(jnp.float32), read_head(head_ref))):
            turn_ref[n, :, where] = x

    def keep_factor(where):
        def keep(first, rows):
            store_operand(rows_ref, slice(None), first, rows, plan, left=True)

        turned, head = kept_turn(turn_ref, where), read_head(head_ref)
        for_factor(
            plan, lambda features: x_ref[features, where], plan.rows_are_queries, turned, head, keep
        )
        for first in range(0, plan.contraction, LANES):
            features = slice(first, first + LANES)
            left_ref[where, features] = rows_ref[features].T.astype(left_ref.dtype)

    clear_empty(rows_ref, plan)
    # One after the other, for the sake of registers.
    for_factor_tokens(plan.rows, keep_turn)
    for_factor_tokens(plan.rows, keep_factor)


def keep_left_values(y_ref, x_ref, plan: Plan) -> None:
    """Writes the left operand of the product of v and dh, [rows, D]."""

    def body(where):
        _store_transposed(y_ref, where, x_ref[:, where].astype(jnp.float32), plan.parts)

    for_factor_tokens(plan.rows, body)


def _store_transposed(y_ref, where, x, parts):
    # Registers of 32 bits transpose everywhere.
    y_ref[where] = operand(x, parts, left=True).T.astype(y_ref.dtype)


def kept_turn(turn_ref, where) -> Turn:
    return Turn(*(turn_ref[n, :, where] for n in range(3)))


# -- one tile --------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """One tile in a kernel: what its rows and columns are."""

    distance: jax.Array  # i - j of the first row and column, int32
    reach: jax.Array
    head_ref: Any
    row_segments_ref: Any  # [rows, LANES], or None
    column_segments_ref: Any  # [1, columns], or None


class Part(NamedTuple):
    """What is worked on at a time: a tile, or a part of one on the window's edge."""

    rows: "pl.Slice"
    columns: "pl.Slice"
    masked: bool


def for_parts(tile: Tile, plan: Plan, work: Callable[[Part], None]) -> None:
    """work(part) on the tile as a whole if all its pairs count, else on parts with some that do."""
    if plan.packed:
        _for_edge_parts(tile, plan, work)
        return
    span = (plan.columns if plan.rows_are_queries else plan.rows) - 1
    other = (plan.rows if plan.rows_are_queries else plan.columns) - 1
    inside = (tile.distance >= span) & (tile.distance + other <= tile.reach)
    whole = Part(pl.Slice(0, plan.rows), pl.Slice(0, plan.columns), masked=False)
    pl.when(inside)(lambda: work(whole))
    pl.when(~inside)(lambda: _for_edge_parts(tile, plan, work))


def _for_edge_parts(tile, plan, work):
    rows, columns = plan.block.part_rows, plan.block.part_columns

    def row_step(n, _):
        first = pl.multiple_of(n * rows, rows)
        start, stop = edge_columns(tile, first, plan)

        def column_step(m, _):
            column = pl.multiple_of(m * columns, columns)
            work(Part(pl.Slice(first, rows), pl.Slice(column, columns), masked=True))

        lax.fori_loop(start, stop, column_step, None)

    lax.fori_loop(0, plan.rows // rows, row_step, None)


def edge_columns(tile: Tile, first, plan: Plan):
    """First and one past the last part of columns with a pair within reach of a part's rows."""
    columns = plan.block.part_columns
    if plan.rows_are_queries:
        lowest = first + tile.distance - tile.reach
        highest = first + tile.distance
    else:
        lowest = first - tile.distance
        highest = lowest + tile.reach
    highest += plan.block.part_rows - 1
    stop = jnp.minimum(highest // columns + 1, plan.columns // columns)
    return jnp.maximum(lowest, 0) // columns, stop


def for_strips(part: Part, plan: Plan, body: Callable[["pl.Slice", Any], Any], carry: Any = None):
    """carry = body(rows, carry) over the part's rows, a strip at a time; the last carry."""
    tokens = cast(int, part.rows.size)
    size = min(plan.block.strip, tokens)
    count = tokens // size

    def step(n, carry):
        return body(pl.Slice(pl.multiple_of(part.rows.start + n * size, size), size), carry)

    if plan.block.rolled:
        return lax.fori_loop(0, count, step, carry)
    for n in range(count):
        carry = step(n, carry)
    return carry


def keep_row_segments(row_segments_ref, segments_ref) -> None:
    """Writes the documents of the rows, each along a register's lanes."""
    segments = segments_ref[...]
    # Columns that are padding stay 0 and rows become -1, so that padding never equals padding.
    segments = jnp.where(segments == 0, -1, segments)
    row_segments_ref[...] = jnp.broadcast_to(segments, (LANES, segments.shape[1])).T


def _allowed(tile: Tile, rows: "pl.Slice", columns: "pl.Slice", plan: Plan):
    """Which pairs of a strip are within reach, and in one document."""
    # 0 <= i - j <= reach, with all that is constant in the strip moved to the bounds. Floats hold
    # these integers.
    head = read_head(tile.head_ref)
    step = head.row - head.token
    steps = jnp.concatenate([step + n for n in range(0, rows.size, SUBLANES)])
    steps = jnp.concatenate([steps - n for n in range(0, columns.size, LANES)], axis=1)
    if plan.rows_are_queries:
        nearest = columns.start - rows.start - tile.distance
    else:
        nearest = rows.start - columns.start - tile.distance
        steps = -steps
    farthest = (nearest + tile.reach).astype(jnp.float32)
    allowed = (steps >= nearest.astype(jnp.float32)) & (steps <= farthest)
    if plan.packed:
        segments = tile.row_segments_ref[rows]
        segments = jnp.concatenate([segments] * (columns.size // LANES), axis=1)
        allowed &= segments == tile.column_segments_ref[:, columns]
    return allowed


def _or_registers(x):
    """Bitwise or of the registers of x: int32 [8, LANES]."""
    x = pltpu.bitcast(x, jnp.int32)
    for axis, size in ((0, SUBLANES), (1, LANES)):
        while x.shape[axis] > size:
            low, high = jnp.split(x, 2, axis)
            x = low | high
    return x


def screen(
    tile: Tile,
    part: Part,
    left_ref,
    right_ref,
    plan: Plan,
    keep: Callable[["pl.Slice", jax.Array], jax.Array],
):
    """Calls keep(rows, sqrt(alpha m)) on each strip of a part, which is to store it.

    `keep` returns numbers >= 0 of which one is not zero if a pair of the strip is accepted. Their
    bits, or-ed, are the result.
    """

    def strip(rows, found):
        root = jnp.maximum(dot(left_ref[rows], right_ref[:, part.columns], (1, 0)), 0)
        if part.masked:
            root = jnp.where(_allowed(tile, rows, part.columns, plan), root, 0)
        return found | _or_registers(keep(rows, root))

    return for_strips(part, plan, strip, jnp.zeros((SUBLANES, LANES), jnp.int32))


def any_accepted(found):
    """Whether a bit is set of what `screen` gave. A scalar is far from the vector unit."""
    # As numbers, since the vector unit reduces no integers.
    return jnp.max(jnp.where(found != 0, 1.0, 0.0)) > 0


def accumulate(total_ref, features_ref, tile_ref, part: Part, plan: Plan, parts: int) -> None:
    """total [features, rows] += features [features, columns] . tile [parts, rows, columns]^T.

    Features are split into `parts` parts, one below the other. The products of small parts with
    small parts are left out, and what is summed for each part of features is still to be joined.
    """

    def add(where, rows, n):
        tile = tile_ref[n, rows, part.columns]
        total_ref[where, rows] += dot(features_ref[where, part.columns], tile, (1, 1))

    size = total_ref.shape[0]
    for n in range(tile_ref.shape[0]):
        stop = size - n * (size // parts)
        if not plan.block.rolled:
            add(slice(0, stop), part.rows, n)
            continue
        for first in range(0, stop, LANES):
            where = slice(first, min(first + LANES, stop))

            def step(m, _, where=where, n=n):
                start = pl.multiple_of(part.rows.start + m * LANES, LANES)
                add(where, pl.Slice(start, LANES), n)

            lax.fori_loop(0, part.rows.size // LANES, step, None)


def in_stages(found, flag_ref, plan: Plan, *stages: Callable[[], None]) -> None:
    """Runs what a part with accepted pairs needs.

    In one piece, its products overlap. A compiler that then starts too much at once, and spills
    registers, gets pieces: it does not see that the conditions of all of them are the same.
    """
    accepted = any_accepted(found)
    if not plan.block.staged:

        @pl.when(accepted)
        def _():
            for stage in stages:
                stage()

        return
    flag_ref[0] = accepted.astype(jnp.int32)
    for stage in stages:
        pl.when(flag_ref[0] != 0)(stage)


# -- which blocks ----------------------------------------------------------------------------------


def key_blocks(start, plan: Plan, reach, before):
    """First and one past the last block of keys that the queries start ... start + rows - 1 read.

    At least one, also where they read none. Works on integers and arrays of Python, numpy and JAX
    alike.
    """
    start = start + before
    first = (start - reach) // plan.columns
    first = first * (first > 0)
    if not plan.apart:  # a query is a key too, and reads itself
        return first, (start + plan.rows - 1) // plan.columns + 1
    last = plan.keys // plan.columns - 1
    return first - (first - last) * (first > last), last + 1


def query_blocks(start, plan: Plan, reach, before):
    """First and one past the last block of queries that read keys start ... start + rows - 1.

    At least one, also where none does.
    """
    start = start - before
    first = start // plan.columns
    first = first * (first > 0)
    stop = (start + plan.rows - 1 + reach) // plan.columns + 1
    blocks = plan.queries // plan.columns
    stop = stop - (stop - blocks) * (stop > blocks)
    return first, stop + (first + 1 - stop) * (stop <= first)


def stream(
    plan: Plan,
    step,
    reach,
    before,
    copies: Callable[[Any, Any], Sequence],
    slot_ref,
    body: Callable[[jax.Array, jax.Array], None],
) -> None:
    """body(block, slot) for every streamed block that meets this grid step's rows.

    Each is fetched while the one before is worked on. The last of a grid step fetches the first of
    the next, so that only the first fetch of a head is waited for.

    Args:
        step: which block of rows.
        copies: (block, slot) -> the async copies that bring a block into one of two buffers.
        slot_ref: one int32 that lives through the grid, the buffer of the block to come.
    """
    blocks_of = key_blocks if plan.rows_are_queries else query_blocks
    steps = plan.length // plan.rows
    first, stop = blocks_of(step * plan.rows, plan, reach, before)
    next_first = blocks_of(jnp.minimum(step + 1, steps - 1) * plan.rows, plan, reach, before)[0]

    @pl.when(step == 0)
    def _():
        slot_ref[0] = 0
        for copy in copies(first, 0):
            copy.start()

    def visit(block, slot):
        for copy in copies(block, slot):
            copy.wait()
        more = block + 1 < stop

        @pl.when(more | (step < steps - 1))
        def _():
            for copy in copies(jnp.where(more, block + 1, next_first), 1 - slot):
                copy.start()

        body(block, slot)
        return 1 - slot

    slot_ref[0] = lax.fori_loop(first, stop, visit, slot_ref[0])
