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
as a sum of two bf16 numbers, which takes rows of the contraction that are empty otherwise.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
SUBLANES = 8
# Tokens whose factors are computed at a time, so that the registers suffice.
FACTOR_TOKENS = 128


class Plan(NamedTuple):
    """What is known of a call when it is compiled."""

    batch: int
    heads: int
    key_dim: int
    value_dim: int
    length: int  # padded
    rows: int  # tokens of the block that stays
    columns: int  # tokens of a streamed block
    strip: int  # rows of a tile that are masked at a time
    rows_are_queries: bool
    exact: bool  # float32 products, else bf16 with float32 sums
    packed: bool  # several documents in a row
    staged: bool  # whether the backward's products are kept apart, see `in_stages`

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(jnp.float32 if self.exact else jnp.bfloat16)

    @property
    def factor_rows(self) -> int:
        """Features of a factor of g: K cosine and K sine rows, and a register for two constants."""
        return 2 * self.key_dim + SUBLANES

    @property
    def gradient_rows(self) -> int:
        """Rows of an operand that hold the factor once: high parts, then low parts if split."""
        return self.factor_rows * (1 if self.exact else 2)

    @property
    def contraction(self) -> int:
        """Length of the product that gives g."""
        return ceil_to(self.factor_rows * (1 if self.exact else 3), LANES)


class Head(NamedTuple):
    """A head's scalars, in a kernel."""

    reach: jax.Array  # int32, the largest distance at which a key counts
    turns_hi: jax.Array  # turns_hi + turns_lo is 1 / 4w, full turns of the angle per token
    turns_lo: jax.Array
    inverse_width: jax.Array


def head_scalars(window: jax.Array, width: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """int32 [H] and float32 [3 H] from which a kernel reads its `Head`."""
    # In this order, a window of infinity or NaN does no harm.
    reach = jnp.clip(jnp.minimum(jnp.ceil(window) - 1, length - 1).astype(jnp.int32), 0, length - 1)
    turns = 0.25 / window
    # Twelve bits, so that the product with a position below 4096 is exact.
    bits = lax.bitcast_convert_type(turns, jnp.int32) & ~0xFFF
    turns_hi = lax.bitcast_convert_type(bits, jnp.float32)
    return reach, jnp.concatenate([turns_hi, turns - turns_hi, 1 / width])


def read_head(reach_ref, numbers_ref, head, heads: int) -> Head:
    return Head(reach_ref[head], *(numbers_ref[n * heads + head] for n in range(3)))


def ceil_to(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def dot(a, b, contract: tuple[int, int], plan: Plan):
    """Product over one axis of each, in float32."""
    dims = (((contract[0],), (contract[1],)), ((), ()))
    # The compiler's default for float32 operands is a single bf16 pass.
    precision = lax.Precision.HIGHEST if plan.exact else None
    return lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


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


def turn(start, size: int, head: Head) -> Turn:
    """The angles of positions start, start + 1, ..."""
    x = (lax.broadcasted_iota(jnp.int32, (SUBLANES, size), 1) + start).astype(jnp.float32)
    coarse, fine = x * head.turns_hi, x * head.turns_lo
    half = math.pi * ((coarse - jnp.round(coarse)) + fine)  # half the angle, within pi / 2
    square = half * half
    sine = half * _polynomial(square, [(-1) ** n / math.factorial(2 * n + 1) for n in range(8)])
    cosine = _polynomial(square, [(-1) ** n / math.factorial(2 * n) for n in range(8)])
    angle = 2 * math.pi * (coarse + fine)
    return Turn(angle, 1 - 2 * (sine * sine), 2 * (sine * cosine))


def factor(x_kt, constant, cosine, sine):
    """x cosine, x sine, constant cosine, constant sine: one factor of g, [F, tokens] in float32."""
    times = x_kt.shape[0] // SUBLANES
    turned = [x_kt * jnp.concatenate([y] * times) for y in (cosine, sine)]
    row = lax.broadcasted_iota(jnp.int32, cosine.shape, 0)
    constants = jnp.where(row == 0, constant * cosine, jnp.where(row == 1, constant * sine, 0))
    return jnp.concatenate([*turned, constants])


def query_factor(q_kt, turned: Turn, head: Head):
    q_kt = q_kt.astype(jnp.float32) * head.inverse_width
    return factor(q_kt, 1 - head.inverse_width, turned.cosine, turned.sine)


def key_factor(k_kt, turned: Turn):
    return factor(k_kt.astype(jnp.float32), 1, turned.cosine, turned.sine)


def split(x):
    """x as a sum of two float32 numbers: the first is exactly a bf16 number, the second nearly."""
    # By bits: a compiler may take a conversion to bf16 and back for nothing.
    bits = lax.bitcast_convert_type(x, jnp.int32)
    high = lax.bitcast_convert_type((bits + 0x8000) & ~0xFFFF, jnp.float32)
    return high, x - high


def operand(rows, plan: Plan, left: bool):
    """A factor as the left or the right operand of the product that gives g: [D, tokens]."""
    parts = [rows]
    if not plan.exact:
        high, low = split(rows)
        parts = [high, high, low] if left else [high, low, high]
    empty = plan.contraction - sum(part.shape[0] for part in parts)
    if empty:
        parts.append(jnp.zeros((empty, rows.shape[1]), jnp.float32))
    return jnp.concatenate(parts).astype(plan.dtype)


def for_factor_tokens(tokens: int, body: Callable[[jax.Array], None]) -> None:
    """body(first token) for each part of a block whose factors fit the registers together."""
    size = factor_tokens(tokens)

    def step(n, _):
        body(pl.multiple_of(n * size, size))

    lax.fori_loop(0, tokens // size, step, None)


def factor_tokens(tokens: int) -> int:
    return min(tokens, FACTOR_TOKENS)


def keep_left(left_ref, turn_ref, x_ref, head: Head, plan: Plan) -> None:
    """Writes the left operand of all tiles of this grid step, [rows, D], and its angles."""
    size = factor_tokens(plan.rows)

    def body(first):
        turned, x_kt = turn(first, size, head), x_ref[:, pl.ds(first, size)]
        for n, x in enumerate(turned):
            turn_ref[n, :, pl.ds(first, size)] = x
        if plan.rows_are_queries:
            rows = query_factor(x_kt, turned, head)
        else:
            rows = key_factor(x_kt, turned)
        # Registers of 32 bits transpose everywhere.
        flat = operand(rows, plan, left=True).astype(jnp.float32).T
        left_ref[pl.ds(first, size)] = flat.astype(plan.dtype)

    for_factor_tokens(plan.rows, body)


def kept_turn(turn_ref, where) -> Turn:
    return Turn(*(turn_ref[n, :, where] for n in range(3)))


def keep_transposed(y_ref, x_ref, plan: Plan) -> None:
    """y = x^T, in the dtype of products."""
    size = factor_tokens(plan.rows)

    def body(first):
        part = x_ref[:, pl.ds(first, size)].astype(jnp.float32).T
        y_ref[pl.ds(first, size)] = part.astype(plan.dtype)

    for_factor_tokens(plan.rows, body)


# -- one tile --------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """One tile in a kernel: what its rows and columns are."""

    distance: jax.Array  # i - j of the first row and column, int32
    reach: jax.Array
    row_segments_ref: Any  # [rows, LANES], or None
    column_segments_ref: Any  # [1, columns], or None


def keep_row_segments(row_segments_ref, segments_ref) -> None:
    """Writes the documents of the rows, each along a register's lanes."""
    segments = segments_ref[...]
    # Columns that are padding stay 0 and rows become -1, so that padding never equals padding.
    segments = jnp.where(segments == 0, -1, segments)
    row_segments_ref[...] = jnp.broadcast_to(segments, (LANES, segments.shape[1])).T


def _allowed(tile: Tile, first, plan: Plan):
    """Which pairs of a strip are within reach, and in one document."""
    shape = (plan.strip, plan.columns)
    row, column = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    # 0 <= i - j <= reach, with all that is constant in the strip moved to the bounds.
    if plan.rows_are_queries:
        nearest = -(tile.distance + first)
        steps = row - column
    else:
        nearest = first - tile.distance
        steps = column - row
    allowed = (steps >= nearest) & (steps <= nearest + tile.reach)
    if plan.packed:
        rows = tile.row_segments_ref[pl.ds(first, plan.strip)]
        rows = jnp.concatenate([rows] * (plan.columns // LANES), axis=1)
        allowed &= rows == tile.column_segments_ref[...]
    return allowed


def _or_registers(x):
    """Bitwise or of the registers of x: int32 [8, LANES]."""
    x = pltpu.bitcast(x, jnp.int32)
    for axis, size in ((0, SUBLANES), (1, LANES)):
        while x.shape[axis] > size:
            low, high = jnp.split(x, 2, axis)
            x = low | high
    return x


def judge(tile: Tile, left_ref, right_ref, plan: Plan, keep: Callable[[Any, jax.Array], jax.Array]):
    """Whether the tile holds an accepted pair; keep(rows, sqrt(alpha m)) stores a strip of them.

    `keep` returns numbers >= 0 of which one is not zero if a pair of the strip is accepted.
    """

    def strip(first, masked):
        rows = pl.ds(first, plan.strip)
        root = jnp.maximum(dot(left_ref[rows], right_ref[...], (1, 0), plan), 0)
        if masked:
            root = jnp.where(_allowed(tile, first, plan), root, 0)
        return _or_registers(keep(rows, root))

    def full():
        found = strip(0, False)
        for first in range(plan.strip, plan.rows, plan.strip):
            found |= strip(first, False)
        return found

    def masked():
        # A loop, since the masks of all strips at once do not fit the registers.
        def step(n, found):
            return found | strip(pl.multiple_of(n * plan.strip, plan.strip), True)

        nothing = jnp.zeros((SUBLANES, LANES), jnp.int32)
        return lax.fori_loop(0, plan.rows // plan.strip, step, nothing)

    if plan.packed:
        found = masked()
    else:
        span = (plan.columns if plan.rows_are_queries else plan.rows) - 1
        other = (plan.rows if plan.rows_are_queries else plan.columns) - 1
        inside = (tile.distance >= span) & (tile.distance + other <= tile.reach)
        found = lax.cond(inside, full, masked)
    # As numbers, since the vector unit reduces no integers.
    return jnp.max(jnp.where(found != 0, 1.0, 0.0)) > 0


def in_stages(accepted, flag_ref, plan: Plan, *stages: Callable[[], None]) -> None:
    """Runs what a tile with accepted pairs needs.

    In one piece, its products overlap. A compiler that then starts too much at once, and spills
    registers, gets pieces: it does not see that the conditions of all of them are the same.
    """
    if not plan.staged:

        @pl.when(accepted)
        def _():
            for stage in stages:
                stage()

        return
    flag_ref[0] = accepted.astype(jnp.int32)
    for stage in stages:
        pl.when(flag_ref[0] != 0)(stage)


# -- which blocks ----------------------------------------------------------------------------------


def key_blocks(start, plan: Plan, reach):
    """First and one past the last block of keys that the queries start ... start + rows - 1 read.

    Works on integers and arrays of Python, numpy and JAX alike.
    """
    first = (start - reach) // plan.columns
    return first * (first > 0), (start + plan.rows - 1) // plan.columns + 1


def query_blocks(start, plan: Plan, reach):
    """First and one past the last block of queries that read keys start ... start + rows - 1."""
    stop = (start + plan.rows - 1 + reach) // plan.columns + 1
    blocks = plan.length // plan.columns
    return start // plan.columns, stop - (stop - blocks) * (stop > blocks)


def stream(
    plan: Plan,
    step,
    reach,
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
    first, stop = blocks_of(step * plan.rows, plan, reach)
    next_first = blocks_of(jnp.minimum(step + 1, steps - 1) * plan.rows, plan, reach)[0]

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
