"""Screening in plain XLA: memory linear in T, and only the keys near each head's window.

Heads run one after another. A head's queries are cut into blocks of C tokens, and a block meets its
keys in bands of L keys, counted backwards from the block's own end:

    band 0 of block n: keys (n+1)C - L .. (n+1)C - 1; band 1: the L keys before those; and so on.

The distances in a band are the same for every block, so its softmask is one table, made once. How
many bands a head visits follows its run-time window, and so does the tile shape (C, L), picked from
a few compiled ones: most windows fit one band. Inside the loops are products of one block with one
band, small enough for the cache.

Nothing guards the zero padding around a sequence: zero keys, values and cotangents contribute
nothing, whatever their relevance. Blocks are of queries, whichever keys come before the first.
"""

import math
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.common.numerics import accumulation_dtype
from pallas_kernels.screening.extent import extent_of


class TileShape(NamedTuple):
    """A block of `queries` tokens against a band of `keys` tokens."""

    queries: int
    keys: int


TILE_SHAPES = (TileShape(32, 48), TileShape(64, 96), TileShape(64, 192), TileShape(64, 336))
# What a tile costs beyond its pairs (loop step, slices, dispatch of the dots), in pairs.
TILE_OVERHEAD = 1536


class HeadTiles(NamedTuple):
    """What the forward of one head visits in one sequence."""

    shape: TileShape
    tiles: int
    pairs: int  # queries x keys of those tiles
    inside: int  # pairs at distances 0 <= i - j < window, the least any method must visit


def screening_chunked(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H V"],
    window: Float[Array, " H"],
    width: Float[Array, " H"],
    segment_ids: Int[Array, "B N"] | None = None,
    gap: Int[Array, ""] | None = None,
    *,
    precision: lax.PrecisionLike = None,
) -> Float[Array, "B T H V"]:
    """`pallas_kernels.screening` in XLA; see there for the mathematics and the arguments.

    Cost: `count_tiles` says which pairs are visited. The forward takes 2 (K + V) FLOPs per pair,
    the backward 2 (3 K + 2 V); it recomputes relevance and keeps only the inputs. Beyond inputs
    and outputs, memory is one head's padded operands and a few [B, C, L] tiles.
    """
    return _screening(q, k, v, window, width, segment_ids, gap, precision)


def count_tiles(length: int, windows) -> list[HeadTiles]:
    """The tiles `screening_chunked` visits for one sequence of `length` tokens, head by head."""
    limits, choices = _plan(length)
    counts = []
    for window in np.asarray(windows, np.float64):
        reach = int(min(max(np.ceil(window) - 1, 0), length - 1))
        shape = TILE_SHAPES[choices[np.searchsorted(limits, reach, side="right")]]
        tiles = int(_num_tiles(shape, length, reach))
        inside = (reach + 1) * length - reach * (reach + 1) // 2
        counts.append(HeadTiles(shape, tiles, tiles * shape.queries * shape.keys, inside))
    return counts


# -- which tiles a head visits ---------------------------------------------------------------------


def _num_bands(shape, reach):
    """Bands that hold a key at distance `reach` or less from some query of the block."""
    return (reach + shape.queries - 1) // shape.keys + 1


def _first_block(shape, band, before=0):
    """The first query block for which the band does not end before the first key."""
    return (band * shape.keys - before) // shape.queries


def _num_blocks(shape, length):
    return -(-length // shape.queries)


def _num_tiles(shape, length, reach):
    blocks = _num_blocks(shape, length)
    per_band = blocks - _first_block(shape, np.arange(_num_bands(shape, length - 1)))
    return np.cumsum(per_band)[_num_bands(shape, reach) - 1]


def _reach(window, farthest):
    """Largest distance at which a key counts; the clip also bounds the loops if window is NaN."""
    reach = jnp.minimum(jnp.ceil(window) - 1, farthest)
    return jnp.clip(reach.astype(jnp.int32), 0, farthest)


@lru_cache
def _plan(length):
    """Reaches at which another tile shape becomes the cheapest, and the shape between them."""
    reach = np.arange(length, dtype=np.int64)
    costs = [
        _num_tiles(shape, length, reach) * (shape.queries * shape.keys + TILE_OVERHEAD)
        for shape in TILE_SHAPES
    ]
    best = np.argmin(costs, axis=0)
    limits = np.flatnonzero(np.diff(best)) + 1
    return limits, best[np.concatenate([[0], limits])]


# -- one tile --------------------------------------------------------------------------------------


def _quarter_sine(x):
    """sin(pi x / 2) for 0 <= x <= 1, with small relative error even in float64.

    XLA's CPU backend takes 2.5 ns for a sine of any angle, and these twelve terms of the power
    series a tenth of that.
    """
    terms = [
        (-1) ** n * (math.pi / 2) ** (2 * n + 1) / math.factorial(2 * n + 1) for n in range(12)
    ]
    total = jnp.full_like(x, terms[-1])
    for term in terms[-2::-1]:
        total = total * (x * x) + term
    return total * x


def _softmask(shape, band, window, keys_major=False):
    """The softmask sin^2(pi (w - d) / 2w) and its derivative by w, for a tile of a band.

    The distances d = i - j are the same in every query block. In this form both keep their relative
    accuracy at either end of the window; at infinity they are 1 and 0.
    """
    query = lax.broadcasted_iota(jnp.int32, shape, 0)
    key = lax.broadcasted_iota(jnp.int32, shape, 1)
    d = query - key + (shape.keys - shape.queries) + band * shape.keys
    d = (d.T if keys_major else d).astype(window.dtype)
    inside = (d >= 0) & (d < window)
    # XLA may divide by multiplying with 1 / window, which is flushed to zero if window is huge.
    fraction = jnp.where(window < 1e30, (window - d) / window, 1)
    edge = _quarter_sine(jnp.where(inside, fraction, 0))
    slope = _quarter_sine(jnp.where(inside, d / window, 0)) * edge * (np.pi * (d / window) / window)
    return edge * edge, slope


def _trim_root(similarity, width, segments_by, segments_bx):
    """max(1 - (1 - s) / width, 0), the root of the trim; 0 across documents."""
    root = jnp.maximum(1 - (1 - similarity) * (1 / width), 0)
    if segments_by is None:
        return root
    same = (segments_by[:, :, None] == segments_bx[:, None, :]) & (segments_bx[:, None, :] != 0)
    return jnp.where(same, root, 0)


# -- one head --------------------------------------------------------------------------------------


def _front_padding(keys):
    return max(TILE_SHAPES[choice].keys for choice in _plan(keys)[1])


def _pad(x, front, back):
    return jnp.pad(x, [(0, 0), (front, back)] + [(0, 0)] * (x.ndim - 2))


def _pad_queries(x):
    """[B,T,...] with whole blocks of every shape."""
    return _pad(x, 0, -x.shape[1] % max(shape.queries for shape in TILE_SHAPES))


def _pad_keys(x, extent):
    """[B,S,...] with the bands of every shape for every block that they concern."""
    front = _front_padding(extent.keys)
    blocks = -extent.queries % max(shape.queries for shape in TILE_SHAPES)
    return _pad(x, front, front if extent.apart else blocks)


def _take(x, start, size, axis=1):
    if x is None:
        return None
    starts = [jnp.int32(0)] * x.ndim
    starts[axis] = start
    sizes = [*x.shape[:axis], size, *x.shape[axis + 1 :]]
    return lax.dynamic_slice(x, starts, sizes, allow_negative_indices=False)


def _add(x, update, start, axis=1):
    starts = [jnp.int32(0)] * x.ndim
    starts[axis] = start
    total = _take(x, start, update.shape[axis], axis) + update
    return lax.dynamic_update_slice(x, total, starts, allow_negative_indices=False)


def _for_each_block(shape, extent, before, band, body, carry):
    """body(row of the query block, row of its band, carry) for the blocks the band concerns."""
    first = jnp.maximum(_first_block(shape, band, before), 0)
    stop = jnp.int32(_num_blocks(shape, extent.queries))
    if extent.apart:  # else no band starts after the last key
        past_keys = extent.keys - before + (band + 1) * shape.keys
        stop = jnp.minimum(stop, _num_blocks(shape, past_keys) - 1)

    def step(block, carry):
        row = block * shape.queries
        end = before + row + shape.queries - band * shape.keys
        return body(row, _front_padding(extent.keys) + end - shape.keys, carry)

    return lax.fori_loop(first, stop, step, carry)


def _for_each_band(shape, extent, before, window, body, carry):
    """body(band, carry) for the bands that hold keys within the window."""
    reach = _reach(window, before + extent.queries - 1)
    first = jnp.maximum((before + shape.queries - extent.keys) // shape.keys, 0)
    return lax.fori_loop(jnp.int32(first), _num_bands(shape, reach), body, carry)


def _head_forward(
    shape, extent, precision, before, q_btk, k_btk, v_btv, window, width, of_queries_bt, of_keys_bt
):
    dot = partial(jnp.einsum, precision=precision)

    def band_step(band, h_btv):
        mask_cl, _ = _softmask(shape, band, window)

        def block_step(row, key_row, h_btv):
            q_bck, k_blk = _take(q_btk, row, shape.queries), _take(k_btk, key_row, shape.keys)
            v_blv = _take(v_btv, key_row, shape.keys)
            segments_bc = _take(of_queries_bt, row, shape.queries)
            segments_bl = _take(of_keys_bt, key_row, shape.keys)
            similarity_bcl = dot("bck,blk->bcl", q_bck, k_blk)
            root_bcl = _trim_root(similarity_bcl, width, segments_bc, segments_bl)
            return _add(h_btv, dot("bcl,blv->bcv", root_bcl * root_bcl * mask_cl, v_blv), row)

        return _for_each_block(shape, extent, before, band, block_step, h_btv)

    h_btv = jnp.zeros((*q_btk.shape[:2], v_btv.shape[2]), q_btk.dtype)
    h_btv = _for_each_band(shape, extent, before, window, band_step, h_btv)
    return (h_btv[:, : extent.queries],)


def _head_backward(
    shape, extent, precision, before, q_btk, k_btk, v_btv, dh_btv, window, width, of_queries_bt,
    of_keys_bt,
):  # fmt: skip
    # Tiles are keys x queries here, dq is summed transposed, and k is turned once as a whole: so no
    # product has a transposed left operand, for which XLA's CPU compiler takes nine times as long.
    dot = partial(jnp.einsum, precision=precision)

    def band_step(band, carry):
        *gradients, dwindow, dwidth = carry
        mask_lc, slope_lc = _softmask(shape, band, window, keys_major=True)
        dmask_lc = mask_lc * (2 / width)

        def block_step(row, key_row, carry):
            dq_bkt, dk_btk, dv_btv, by_mask_blc, by_width_blc = carry
            q_bck, k_blk = _take(q_btk, row, shape.queries), _take(k_btk, key_row, shape.keys)
            k_bkl = _take(k_bkt, key_row, shape.keys, axis=2)
            dh_bcv, v_blv = _take(dh_btv, row, shape.queries), _take(v_btv, key_row, shape.keys)
            segments_bc = _take(of_queries_bt, row, shape.queries)
            segments_bl = _take(of_keys_bt, key_row, shape.keys)
            similarity_blc = dot("blk,bck->blc", k_blk, q_bck)
            root_blc = _trim_root(similarity_blc, width, segments_bl, segments_bc)
            droot_blc = dot("blv,bcv->blc", v_blv, dh_bcv) * root_blc
            dsimilarity_blc = droot_blc * dmask_lc
            return (
                _add(dq_bkt, dot("bkl,blc->bkc", k_bkl, dsimilarity_blc), row, axis=2),
                _add(dk_btk, dot("blc,bck->blk", dsimilarity_blc, q_bck), key_row),
                _add(dv_btv, dot("blc,bcv->blv", root_blc * root_blc * mask_lc, dh_bcv), key_row),
                by_mask_blc + droot_blc * root_blc,
                by_width_blc + droot_blc * (1 - root_blc),
            )

        tile = jnp.zeros((q_btk.shape[0], shape.keys, shape.queries), q_btk.dtype)
        *gradients, by_mask_blc, by_width_blc = _for_each_block(
            shape, extent, before, band, block_step, (*gradients, tile, tile)
        )
        dwindow += jnp.sum(by_mask_blc * slope_lc)
        dwidth += jnp.sum(by_width_blc * dmask_lc)
        return *gradients, dwindow, dwidth

    q_bkt, k_bkt = jnp.swapaxes(q_btk, 1, 2), jnp.swapaxes(k_btk, 1, 2)
    carry = [jnp.zeros_like(x) for x in (q_bkt, k_btk, v_btv, window, width)]
    dq_bkt, *of_keys, dwindow, dwidth = _for_each_band(
        shape, extent, before, window, band_step, tuple(carry)
    )
    front = _front_padding(extent.keys)
    dk_btk, dv_btv = (x[:, front : front + extent.keys] for x in of_keys)
    return jnp.swapaxes(dq_bkt, 1, 2)[:, : extent.queries], dk_btk, dv_btv, dwindow, dwidth


def _head_axis(x):
    return 2 if x.ndim > 1 else 0


def _over_heads(head, of_queries, of_keys, window, width, segment_ids, gap, precision):
    """Results of head(...) for all heads, [B,T,H,...] where one head gives [B,T,...], else [H].

    `of_queries` are q, and in the backward dh; `of_keys` are k and v.
    """
    extent = extent_of(of_queries[0], of_keys[0], gap)
    before, heads = extent.before(gap), of_queries[0].shape[2]
    dtype = accumulation_dtype(*of_queries, *of_keys)
    window, width = window.astype(dtype), width.astype(dtype)
    segments = [None, None]
    if segment_ids is not None:
        segments = [
            _pad_queries(segment_ids[:, -extent.queries :]),
            _pad_keys(segment_ids[:, : extent.keys], extent),
        ]
    limits, choices = _plan(extent.keys)
    used, branch_of = np.unique(choices, return_inverse=True)
    branches = [partial(head, TILE_SHAPES[index], extent, precision, before) for index in used]

    def run(index):
        def of_head(x):
            return lax.dynamic_index_in_dim(x, index, 2, keepdims=False).astype(dtype)

        q, *dh = (_pad_queries(of_head(x)) for x in of_queries)
        k, v = (_pad_keys(of_head(x), extent) for x in of_keys)
        reach = _reach(window[index], before + extent.queries - 1)
        section = jnp.sum(reach >= jnp.asarray(limits, jnp.int32))
        branch = jnp.asarray(branch_of, jnp.int32)[section]
        operands = q, k, v, *dh, window[index], width[index], *segments
        return [
            x[:, :, None] if x.ndim else x[None] for x in lax.switch(branch, branches, *operands)
        ]

    def step(index, out):
        # In place, so that no [H, B, T, ...] result has to be transposed afterwards.
        return [
            lax.dynamic_update_slice_in_dim(o, result, index, axis=_head_axis(result))
            for o, result in zip(out, run(index), strict=True)
        ]

    out = []
    for x in jax.eval_shape(run, 0):
        axis = _head_axis(x)
        out.append(jnp.zeros((*x.shape[:axis], heads, *x.shape[axis + 1 :]), dtype))
    return lax.fori_loop(jnp.int32(0), jnp.int32(heads), step, out)


@partial(jax.custom_vjp, nondiff_argnums=(7,))
def _screening(q, k, v, window, width, segment_ids, gap, precision):
    (h,) = _over_heads(_head_forward, (q,), (k, v), window, width, segment_ids, gap, precision)
    return h.astype(v.dtype)


def _screening_fwd(*args):
    return _screening(*args), args[:-1]


def _screening_bwd(precision, residuals, dh):
    *inputs, segment_ids, gap = residuals
    q, k, v, window, width = inputs
    gradients = _over_heads(
        _head_backward, (q, dh), (k, v), window, width, segment_ids, gap, precision
    )
    return *(d.astype(x.dtype) for d, x in zip(gradients, inputs, strict=True)), None, None


_screening.defvjp(_screening_fwd, _screening_bwd)
