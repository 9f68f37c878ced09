"""One chunk of one head on a TPU, as a map of its values and of the state before it.

Time lies on lanes, and a state S [K,V] is kept as its transpose M [V,K]: so every product with it
is a plain one, and what belongs to a token is a row that multiplies without being moved. With X the
inverse of the delta rule's system times beta (no X: SSD), D the decays between tokens, E what is
left of the state before the chunk and F of a token after it, for j <= i

    B_ji = (k_j . q_i) D_ji        P = X B  (SSD: B)

    y = v (P * scales) + sum_l weights_l * (M_l reads)
    M_l' = E_last M_l - (M_l erases) writes^T          written = updates writes^T

             reads            weights_l   erases      updates   writes
    SSD      q                E lambda_l  none        v F       k
    delta    q E - (k E) P    lambda_l    (k E) X     v X       k F

where X is stored transposed, X_ji acting from token j on token i, and lambda are level scales (one,
without levels). (Mamba-2, arXiv:2405.21060, section 6; Gated DeltaNet, arXiv:2412.06464, section
3.3; Log-Linear Attention, arXiv:2506.04761, section 3.)

Results of products go to scratch and are worked on from there, a few registers at a time.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.common.pallas import pl, pltpu

CHUNK = 128  # tokens of a chunk: the lanes of a register
SUBLANES = 8
INNER = CHUNK.bit_length()  # levels inside a chunk

# Rows of numbers for every token, in the order of `TokenDecays`, then the document; then the level
# scales of the levels inside a chunk, and those of the states.
SUMS, REST, FROM_START, TO_END, DOCUMENT = range(5)
INNER_SCALES = 8
STATE_SCALES = INNER_SCALES + INNER

_NEVER = -1e30  # exp of it is zero
_PART = 16  # rows of pairs that are worked on together


class Plan(NamedTuple):
    """What a kernel is made for; sizes in elements.

    Attributes:
        chunks: of a row, a multiple of `segment`.
        states: of a head; one without levels.
        block: heads that a step of the grid takes together: of one group, or where groups have one
            head, of as many groups.
        segment: chunks that it takes together.
        exact: float32 products, of float32 inputs.
    """

    batch: int
    groups: int
    heads: int
    key_dim: int
    value_dim: int
    chunks: int
    states: int
    block: int
    segment: int
    delta: bool
    levels: bool
    packed: bool
    exact: bool

    @property
    def rows(self) -> int:
        """Numbers for a token and head."""
        used = STATE_SCALES + self.states if self.levels else INNER_SCALES
        return pl.cdiv(used, SUBLANES) * SUBLANES

    @property
    def keys(self) -> int:
        """Groups of a block."""
        return self.block if self.groups == self.heads else 1

    @property
    def sharing(self) -> int:
        """Heads of a block that share q and k."""
        return self.block // self.keys

    @property
    def blocks(self) -> int:
        """Blocks of heads that have the same groups."""
        return self.heads // self.groups // self.sharing

    def key_of(self, head: Any) -> Any:
        """The group of a head, both counted in the block."""
        return 0 if self.keys == 1 else head

    @property
    def segments(self) -> int:
        return self.chunks // self.segment

    @property
    def operand(self) -> Any:
        return jnp.float32 if self.exact else jnp.bfloat16


class Maps(NamedTuple):
    """Scratch for what a chunk is to the heads of a block.

    Attributes:
        scores: [S,e,C,C] f32, k_j . q_i, of the S chunks of a segment and e groups; one chunk's
            [e,C,C] once in it.
        overlaps: [r,C,C], B.
        pairs: [r,C,C], P; of the delta rule.
        scaled: [r,C,C], P * scales; with levels.
        keys: [r,K,C], k E.
        ends: [r,K,2C], reads and erases side by side.
        writes: [r,K,C].
        updates: [r,V,C].
        seen: [r,V,2C] f32, what a state gives through `ends`.
        moved: [r,V,K] f32, what is added to a state.
        product: [r,max(K,C),2C] f32.
        rows: [r,R,C] f32, those of `Tokens`; here one can be picked at run time.
        never_negative: an integer that the compiler does not know, in scalar memory.
    """

    scores: Any
    overlaps: Any
    pairs: Any
    scaled: Any
    keys: Any
    ends: Any
    writes: Any
    updates: Any
    seen: Any
    moved: Any
    product: Any
    rows: Any
    never_negative: Any


def maps_scratch(plan: Plan) -> list[Any]:
    pairs = pltpu.VMEM((plan.block, CHUNK, CHUNK), plan.operand)
    of_keys, of_values = (plan.block, plan.key_dim), (plan.block, plan.value_dim)
    maps = Maps(
        scores=pltpu.VMEM((plan.segment, plan.keys, CHUNK, CHUNK), jnp.float32),
        overlaps=pairs,
        pairs=pairs,
        scaled=pairs,
        keys=pltpu.VMEM((*of_keys, CHUNK), plan.operand),
        ends=pltpu.VMEM((*of_keys, 2 * CHUNK), plan.operand),
        writes=pltpu.VMEM((*of_keys, CHUNK), plan.operand),
        updates=pltpu.VMEM((*of_values, CHUNK), plan.operand),
        seen=pltpu.VMEM((*of_values, 2 * CHUNK), jnp.float32),
        moved=pltpu.VMEM((*of_values, plan.key_dim), jnp.float32),
        product=pltpu.VMEM((plan.block, max(plan.key_dim, CHUNK), 2 * CHUNK), jnp.float32),
        rows=pltpu.VMEM((plan.block, plan.rows, CHUNK), jnp.float32),
        never_negative=None,
    )
    return list(maps[:-1])


class Tokens(NamedTuple):
    """Refs to a chunk's inputs: q and k [e,K,C] of e groups, v [r,V,C], rows [r,R,C], solve
    [r,C,C]."""

    q: Any
    k: Any
    v: Any
    rows: Any
    solve: Any


# -- products --------------------------------------------------------------------------------------

_CONTRACTED = {"nn": ((1,), (0,)), "nt": ((1,), (1,)), "tn": ((0,), (0,))}


def dot(plan: Plan, form: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """The float32 product of operands, each plain ("n") or transposed ("t")."""
    return lax.dot_general(
        a.astype(plan.operand),
        b.astype(plan.operand),
        (_CONTRACTED[form], ((), ())),
        precision=lax.Precision.HIGHEST if plan.exact else None,
        preferred_element_type=jnp.float32,
    )


def sums_over_lanes(plan: Plan, x: jax.Array) -> jax.Array:
    """sum_i x_ji as a row over j, [1,C], accurate to 16 bits or more."""
    ones = jnp.ones((SUBLANES, CHUNK), plan.operand)
    if plan.exact:
        return dot(plan, "nt", ones, x)[:1]
    high = x.astype(jnp.bfloat16)
    low = x - high.astype(jnp.float32)
    return (dot(plan, "nt", ones, high) + dot(plan, "nt", ones, low))[:1]


# -- rows of numbers -------------------------------------------------------------------------------


def row_of(rows: Any, index: Any) -> jax.Array:
    """One row [1,C] of a head's [R,C]."""
    return rows[pl.ds(index, 1)]


def through(rows: Any) -> jax.Array:
    """E_last [1,1], what is left of a state after the chunk."""
    return rows[FROM_START : FROM_START + 1, CHUNK - 1 :]


# -- pairs of tokens, [C,C]: sublanes j are read by lanes i ---------------------------------------


def parts():
    """Slices of j, to work on pairs a few registers at a time."""
    return [slice(start, start + _PART) for start in range(0, CHUNK, _PART)]


def _tokens(part: slice) -> tuple[jax.Array, jax.Array]:
    """j and i of the pairs of a part."""
    shape = (part.stop - part.start, CHUNK)
    j = lax.broadcasted_iota(jnp.int32, shape, 0) + part.start
    return j, lax.broadcasted_iota(jnp.int32, shape, 1)


def earlier(part: slice) -> jax.Array:
    j, i = _tokens(part)
    return j < i


def pair_decays(plan: Plan, rows: Any, columns: jax.Array, part: slice) -> jax.Array:
    """D: what is left of token j when token i reads it; `columns` are the first rows transposed."""

    def column(index):
        return columns[part, index : index + 1]

    left = row_of(rows, SUMS) - column(SUMS)
    if plan.exact:  # else the sums' rounding, 2^-24 of them, is far below that of products
        left = left + (row_of(rows, REST) - column(REST))
    j, i = _tokens(part)
    seen = j <= i
    if plan.packed:
        seen &= row_of(rows, DOCUMENT) == column(DOCUMENT)
    return jnp.exp(jnp.where(seen, left, _NEVER))


def pair_scales(rows: Any, part: slice) -> jax.Array:
    """The scale of level(j, i) by reading token i."""
    j, i = _tokens(part)
    apart = j ^ i
    scales = jnp.broadcast_to(row_of(rows, INNER_SCALES), apart.shape)
    for level in range(1, INNER):
        scales = jnp.where(apart >= 1 << (level - 1), row_of(rows, INNER_SCALES + level), scales)
    return scales


def sums_by_level(pairs: Any) -> list[jax.Array]:
    """From pairs(part): the sum over j of every level, [1,C] each, as `pair_scales` has them."""
    totals = [jnp.zeros((SUBLANES, CHUNK), jnp.float32) for _ in range(INNER)]
    for part in parts():
        x = pairs(part)
        j, i = _tokens(part)
        apart = j ^ i
        for level in range(INNER):
            here = (apart >= (1 << level) >> 1) & (apart < 1 << level)
            kept = jnp.where(here, x, 0)
            totals[level] += kept.reshape(-1, SUBLANES, CHUNK).sum(axis=0)
    return [over_features(total) for total in totals]


def over_features(x: jax.Array) -> jax.Array:
    """The sum over sublanes, [1,C]."""
    return jnp.sum(x, axis=0, keepdims=True)


# -- a chunk ---------------------------------------------------------------------------------------


def in_parts(features: int, body: Any) -> None:
    """Runs body(slice) over features, to work on large arrays a few registers at a time."""
    size = math.gcd(features, 64)
    pl.loop(0, features // size)(lambda n: body(pl.ds(pl.multiple_of(n * size, size), size)))


def pairs_of(plan: Plan, maps: Maps) -> Any:
    """P."""
    return maps.pairs if plan.delta else maps.overlaps


def scaled_pairs(plan: Plan, maps: Maps) -> Any:
    """P * scales."""
    return maps.scaled if plan.levels else pairs_of(plan, maps)


def fill_maps(plan: Plan, tokens: Tokens, maps: Maps) -> None:
    """All maps of all heads, from the scores."""

    @each_head(plan, maps)
    def _(h):
        rows = tokens.rows.at[h]
        columns = rows[:SUBLANES].T
        for part in parts():
            overlaps = maps.scores[plan.key_of(h), part] * pair_decays(plan, rows, columns, part)
            maps.overlaps[h, part] = overlaps.astype(plan.operand)
            if plan.levels and not plan.delta:
                maps.product[h, part, :CHUNK] = overlaps

    fill_state_maps(plan, tokens, maps)
    if plan.delta:

        @each_head(plan, maps)
        def _(h):
            product = maps.product.at[h, :CHUNK, :CHUNK]
            product[...] = dot(plan, "nn", tokens.solve[h], maps.overlaps[h])
            maps.pairs[h] = product[...].astype(plan.operand)

    if plan.levels:

        @each_head(plan, maps)
        def _(h):
            for part in parts():
                scaled = maps.product[h, part, :CHUNK] * pair_scales(tokens.rows.at[h], part)
                maps.scaled[h, part] = scaled.astype(plan.operand)

    if not plan.delta:
        return

    @each_head(plan, maps)
    def _(h):
        from_start = row_of(tokens.rows.at[h], FROM_START)
        product = maps.product.at[h, : plan.key_dim, :CHUNK]
        product[...] = dot(plan, "nn", maps.keys[h], maps.pairs[h])
        reads = tokens.q[plan.key_of(h)] * from_start - product[...]
        maps.ends[h, :, :CHUNK] = reads.astype(plan.operand)


def fill_state_maps(plan: Plan, tokens: Tokens, maps: Maps) -> None:
    """The maps that move states on: erases, writes and updates."""

    @each_head(plan, maps)
    def _(h):
        rows, v = tokens.rows.at[h], tokens.v.at[h]
        if not plan.delta:
            maps.updates[h] = (v[...] * row_of(rows, TO_END)).astype(plan.operand)
            return
        maps.keys[h] = (tokens.k[plan.key_of(h)] * row_of(rows, FROM_START)).astype(plan.operand)
        maps.writes[h] = (tokens.k[plan.key_of(h)] * row_of(rows, TO_END)).astype(plan.operand)

    if plan.delta:

        @each_head(plan, maps)
        def _(h):
            erases = dot(plan, "nn", maps.keys[h], tokens.solve[h])
            maps.ends[h, :, CHUNK:] = erases.astype(plan.operand)

        @each_head(plan, maps)
        def _(h):
            updates = dot(plan, "nn", tokens.v[h], tokens.solve[h])
            maps.updates[h] = updates.astype(plan.operand)


def each_head(plan: Plan, maps: Maps, together: bool = True) -> Any:
    """A decorator: runs a function for every head of a block; one waits while another works.

    Between two such functions there is a jump, and if not `together` between heads too: the
    compiler would overlap more than registers hold.
    """
    heads = (
        [list(range(plan.block))]
        if together and not plan.exact
        else [[h] for h in range(plan.block)]
    )

    def run(body: Any) -> None:
        for some in heads:

            @pl.when(maps.never_negative[0, 0] >= 0)
            def _(some=some):
                for h in some:
                    body(h)

    return run


class Cotangents(NamedTuple):
    """Scratch for those of a chunk, f32.

    Attributes:
        q, k: [e,K,C] of e groups, sums over heads.
        scores: likewise, [S,e,C,C] of a segment.
        pairs: [r,C,C], of P * scales, then of P, then of B.
        ends: [r,K,2C].
        writes: [r,K,C].
        updates: [r,V,C].
        through: [r,8,K]: row 0 sums to that of E_last.
        rows: [r,R,C].
    """

    q: Any
    k: Any
    scores: Any
    pairs: Any
    ends: Any
    writes: Any
    updates: Any
    through: Any
    rows: Any


def cotangent_scratch(plan: Plan, length: int) -> Cotangents:
    """With q and k of `length` tokens."""
    f32 = jnp.float32
    of_keys = (plan.block, plan.key_dim)
    return Cotangents(
        q=pltpu.VMEM((plan.keys, plan.key_dim, length), f32),
        k=pltpu.VMEM((plan.keys, plan.key_dim, length), f32),
        scores=pltpu.VMEM((plan.segment, plan.keys, CHUNK, CHUNK), f32),
        pairs=pltpu.VMEM((plan.block, CHUNK, CHUNK), f32),
        ends=pltpu.VMEM((*of_keys, 2 * CHUNK), f32),
        writes=pltpu.VMEM((*of_keys, CHUNK), f32),
        updates=pltpu.VMEM((plan.block, plan.value_dim, CHUNK), f32),
        through=pltpu.VMEM((plan.block, SUBLANES, plan.key_dim), f32),
        rows=pltpu.VMEM((plan.block, plan.rows, CHUNK), f32),
    )


def local_backward(
    plan: Plan, tokens: Tokens, maps: Maps, dy: Any, d: Cotangents, outputs: Tokens
) -> None:
    """From the cotangents of results and maps to those of the inputs.

    Args:
        dy: [r,V,C].
        d: `pairs` and `ends` are overwritten; q, k, scores and rows are added to.
        outputs: v and solve are written.
    """

    @each_head(plan, maps)
    def _(h):
        d.pairs[h] = dot(plan, "tn", tokens.v[h], dy[h])

    if plan.levels:
        _scales_backward(plan, tokens, maps, d)

    @each_head(plan, maps)
    def _(h):
        values = maps.seen.at[h, :, :CHUNK]
        values[...] = dot(plan, "nt", dy[h], scaled_pairs(plan, maps)[h])
        if not plan.delta:
            drows = d.rows.at[h]
            drows[TO_END : TO_END + 1] = over_features(d.updates[h] * tokens.v[h])
            values[...] += d.updates[h] * row_of(tokens.rows.at[h], TO_END)
            outputs.v[h] = values[...].astype(outputs.v.dtype)

    if plan.delta:
        _delta_backward(plan, tokens, maps, d, outputs)
    _decays_backward(plan, tokens, maps, d)


def _scales_backward(plan, tokens, maps, d):
    """Those of the scales inside chunks; `d.pairs` becomes that of the pairs before them."""

    @each_head(plan, maps, together=False)
    def _(h):
        pairs = pairs_of(plan, maps)
        sums = sums_by_level(lambda part: d.pairs[h, part] * pairs[h, part])
        for level, total in enumerate(sums):
            row = INNER_SCALES + level
            d.rows[h, row : row + 1] = total

    @each_head(plan, maps)
    def _(h):
        for part in parts():
            d.pairs[h, part] *= pair_scales(tokens.rows.at[h], part)


def _delta_backward(plan, tokens, maps, d, outputs):
    """Of the delta rule's maps; leaves in `d.pairs` the cotangent of the overlaps."""

    @each_head(plan, maps)
    def _(h):
        square = maps.product.at[h, :CHUNK, :CHUNK]
        square[...] = dot(plan, "tn", maps.keys[h], d.ends[h, :, :CHUNK])
        d.pairs[h] -= square[...]

    @each_head(plan, maps)
    def _(h):
        square = maps.product.at[h, :CHUNK, :CHUNK]
        square[...] = dot(plan, "nt", d.pairs[h], maps.overlaps[h])
        square[...] += dot(plan, "tn", tokens.v[h], d.updates[h])
        square[...] += dot(plan, "tn", maps.keys[h], d.ends[h, :, CHUNK:])
        outputs.solve[h] = square[...].astype(outputs.solve.dtype)

    @each_head(plan, maps)
    def _(h):
        values = maps.seen.at[h]
        values[:, CHUNK:] = dot(plan, "nt", d.updates[h], tokens.solve[h])
        outputs.v[h] = (values[:, :CHUNK] + values[:, CHUNK:]).astype(outputs.v.dtype)

    @each_head(plan, maps)
    def _(h):
        # In place of those of the erases come those of the decayed keys.
        dkeys = maps.product.at[h, : plan.key_dim, :CHUNK]
        dkeys[...] = dot(plan, "nt", d.ends[h, :, :CHUNK], maps.pairs[h])
        d.ends[h, :, CHUNK:] = dot(plan, "nt", d.ends[h, :, CHUNK:], tokens.solve[h])
        d.ends[h, :, CHUNK:] -= dkeys[...]

    @each_head(plan, maps)
    def _(h):
        d.pairs[h] = dot(plan, "tn", tokens.solve[h], d.pairs[h])

    for h in range(plan.block):
        in_parts(plan.key_dim, partial(_keys_backward, plan, tokens, d, h))


def _keys_backward(plan, tokens, d, h, features):
    """From the cotangents of reads, decayed keys and writes."""
    rows, drows = tokens.rows.at[h], d.rows.at[h]
    from_start, to_end = row_of(rows, FROM_START), row_of(rows, TO_END)
    e = plan.key_of(h)
    q, k = tokens.q[e, features], tokens.k[e, features]
    dreads, dkeys = d.ends[h, features, :CHUNK], d.ends[h, features, CHUNK:]
    dwrites = d.writes[h, features]
    drows[FROM_START : FROM_START + 1] += over_features(dreads * q + dkeys * k)
    drows[TO_END : TO_END + 1] += over_features(dwrites * k)
    d.q[e, features] += dreads * from_start
    d.k[e, features] += dkeys * from_start + dwrites * to_end


def _decays_backward(plan, tokens, maps, d):
    """From the cotangent of the overlaps, in `d.pairs`, to those of scores and decays."""

    @each_head(plan, maps, together=False)
    def _(h):
        rows = tokens.rows.at[h]
        columns = rows[:SUBLANES].T
        for part in parts():
            moved = d.pairs[h, part] * maps.overlaps[h, part]
            d.scores[plan.key_of(h), part] += d.pairs[h, part] * pair_decays(
                plan, rows, columns, part
            )
            # The pair of a token with itself does not decay.
            d.pairs[h, part] = jnp.where(earlier(part), moved, 0)

    @each_head(plan, maps, together=False)
    def _(h):
        drows = d.rows.at[h]
        read = over_features(d.pairs[h])
        drows[SUMS : SUMS + 1] = read - sums_over_lanes(plan, d.pairs[h])
        last = lax.broadcasted_iota(jnp.int32, (1, CHUNK), 1) == CHUNK - 1
        total = jnp.sum(d.through[h, 0:1], axis=1, keepdims=True)
        drows[FROM_START : FROM_START + 1] += jnp.where(last, total, 0)
